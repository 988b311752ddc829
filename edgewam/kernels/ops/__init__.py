"""Fused ops with kernels, one file each; see docs/kernels.md and `edgewam.kernels.bound` for what a file offers."""
