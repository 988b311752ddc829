"""`python -m edgewam` is the `edgewam` command."""

from edgewam.cli import main

main()
