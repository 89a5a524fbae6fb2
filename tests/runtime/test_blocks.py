"""Profiles and blocks of tables against plain loops, and the hash that generated modules share."""

from __future__ import annotations

import torch
from attndsl.codegen.library import attn_signatures

from attndsl.plan.signatures import attn_bits
from attndsl.runtime.blocks import bits_of, part, reduced, reduced_keys


def test_blocks_of_a_dimension() -> None:
    value = torch.randn(3, 2, 11, generator=torch.Generator().manual_seed(0))
    for block in (1, 2, 4, 11, 20):
        found = reduced(value, 2, block, torch.amin)
        wanted = [value[..., at : at + block].amin(-1) for at in range(0, 11, block)]
        assert torch.equal(found, torch.stack(wanted, -1))
    assert reduced(value[..., :0], 2, 4, torch.amin).shape == (3, 2, 0)


def test_the_block_in_which_a_batch_ends_has_its_own_entries_only() -> None:
    value = torch.randn(1, 2, 11, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([0, 1, 5, 8, 11, 30, -2])
    found = reduced_keys(value, 4, torch.amax, lengths)
    for b, length in enumerate(lengths.clamp(0, 11).tolist()):
        for at in range(0, length, 4):
            wanted = value[0, :, at : min(at + 4, length)].amax(-1)
            assert torch.equal(found[b, :, at // 4], wanted)


def test_a_part_is_zero_outside_the_table() -> None:
    table = torch.arange(1, 7).view(2, 3)
    assert part(table, 1, -2, 4).tolist() == [[0, 0, 1, 2], [0, 0, 4, 5]]
    assert part(table, 1, 2, 3).tolist() == [[3, 0, 0], [6, 0, 0]]
    assert part(table, 0, 7, 2).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert part(table, 1, 1, 2).data_ptr() == table[:, 1:].data_ptr()  # not copied


def test_nan_stays_in_its_block() -> None:
    value = torch.tensor([[[1.0, float("nan"), 2.0, 3.0]]])
    assert reduced(value, 2, 2, torch.amin).isnan().tolist() == [[[True, False]]]


def test_signatures_are_those_of_generated_modules() -> None:
    generator = torch.Generator().manual_seed(0)
    ends = torch.tensor([-(2**63), 2**63 - 1, -1, 0, 1])
    value = torch.randint(-(2**62), 2**62, (2, 3, 90), generator=generator)
    value = torch.cat((value, ends.expand(2, 3, 5)), -1)
    for block in (1, 3, 16, 64, 200):
        mine = reduced(bits_of(value), 2, block, attn_bits)
        assert torch.equal(mine, attn_signatures(value, block))
