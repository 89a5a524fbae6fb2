"""What kernels visit and what they need, counted."""
