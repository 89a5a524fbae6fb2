"""attndsl: a compiler for attention."""
