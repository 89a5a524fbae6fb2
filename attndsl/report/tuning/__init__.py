"""`attndsl tune`: which sizes of a program's kernels are fastest, and what they take."""
