"""Tasks on the simulated ALOHA: one module each, found by its file name, that offers `TASK` (see `aloha_task`)."""
