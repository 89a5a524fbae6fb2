"""Tree -> IR: names and imports resolved, kinds checked, definitions expanded."""

from attndsl.semantics.check import analyse, check_all

__all__ = ["analyse", "check_all"]
