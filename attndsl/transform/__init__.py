"""IR -> IR: simplify and differentiate."""
