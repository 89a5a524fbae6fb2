"""Generated kernels, compiled for a target that need not be here."""
