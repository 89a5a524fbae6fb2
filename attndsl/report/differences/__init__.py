"""Whether masks differ, and where."""
