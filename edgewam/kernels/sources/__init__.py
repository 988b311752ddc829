"""Triton sources.  Nobody imports them: `edgewam.kernels.source` loads each as compiled or as interpreted kernels."""
