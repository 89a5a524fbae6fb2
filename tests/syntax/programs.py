"""Programs by hand that use the whole grammar, in several spellings."""

from __future__ import annotations

PROGRAM = '''"""Gemma 2, local layer:
   a causal sliding window.
"""
# imports
from std import causal as c, alibi
from "./masks.attn" import (near , far,)


def causal = k <= q
def near(a, b,) = abs(a - b) < 3 if a else -b ** -2 ** c  # after
# about gemma

attention gemma(window: int = 4_096, cap: float = -inf, start: const int = -1, bias: float[
H, 2 * R + 1],):

    """One
       two."""
    mask  0<=q-k<window
    score cap*tanh( score/cap )+ - .5e-3
    # between
    grid t = 3, y = height,x=width, start = start


    weights softmax(sink=s[h])
    select routed[i = q, j = k // block] per group:
        rank  dot(mean(query), max(key))
        where j < i // block

        keep  top (n)
        # in the select
    # in the attention
    mask (routed or k // block == q // block) and k <= q if rank else int(x) # last
    mask (q.x < # inner
  # own line
k.y)
    let long = f(aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,
    (bbbbbbbbbbbbbbbbbbbbbbbbb and cccccccccccccccccccc) or not ddddddddddd)
    # end
# about the next
attention g:
  'doc'
  output out * true
attention top(block: bool = false, rank: bool[Nq, Nk]):
    select near[block = q, rank = k]:
        given top[per, group]
    weights normalize(mass + softmax)
    weights sink + softmax
'''
