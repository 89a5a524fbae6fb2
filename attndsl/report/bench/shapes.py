"""The sizes of a call, and a case: a mask on a shape, and what is measured of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    width: int  # head dimension, of values too

    @property
    def text(self) -> str:
        """For a person."""
        heads = f"{self.heads}:{self.kv_heads} heads of {self.width}"
        if self.queries == self.keys:
            return f"batch {self.batch}, {heads}, {self.keys:,} tokens"
        queries = f"{self.queries} quer{'y' if self.queries == 1 else 'ies'}"
        return f"batch {self.batch}, {heads}, {queries}, {self.keys:,} keys"
