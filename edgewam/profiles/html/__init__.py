"""The report as one self-contained HTML page: plain data in, text out, no file read and no package needed."""
