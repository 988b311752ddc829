"""Everything that is measured on a GPU: `make gpu`, that is `python3 -m benchmarks.gpu` (see benchmarks/NOTES.md)."""
