"""What is measured, how, and the recorded results (`results/<device>/`).  Not part of the installed package."""
