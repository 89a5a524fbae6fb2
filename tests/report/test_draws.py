"""Samples by size: what they add up to, what they never miss, how far off they say they are."""

from __future__ import annotations

import pytest
import torch

from attndsl.report.tiles.draws import drawn, spread, standard_error


def random(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("count", [7, 100, 900])
def test_the_sizes_of_a_sample_add_up_to_all_sizes(count: int) -> None:
    sizes = random(1000, 0) ** 8 * 1e6
    numbers, shares = drawn(sizes, count)
    assert len(numbers) == count and bool((numbers[1:] >= numbers[:-1]).all())
    assert float((sizes[numbers] * shares).sum()) == pytest.approx(float(sizes.sum()))
    assert float(shares.min()) >= 1


def test_large_things_are_always_drawn_and_stand_for_themselves() -> None:
    sizes = torch.ones(1000, dtype=torch.int64)
    sizes[[3, 500, 999]] = torch.tensor([10_000, 400, 30])
    numbers, shares = drawn(sizes, 60)
    for large in (3, 500, 999):
        assert shares[numbers == large].tolist() == [1.0]


def test_nothing_is_drawn_that_has_no_size() -> None:
    sizes = torch.zeros(100)
    assert len(drawn(sizes, 10)[0]) == 0
    sizes[40:43] = 1
    numbers, shares = drawn(sizes, 10)
    assert numbers.tolist() == [40, 41, 42] and shares.tolist() == [1, 1, 1]


@pytest.mark.parametrize("period", [10, 50, 64, 100, 128])
def test_what_repeats_is_met_as_often_as_it_is_there(period: int) -> None:
    """A sample of every hundredth would meet all of it, or nothing."""
    here = (torch.arange(100_000) % period == 0).double()
    numbers, shares = drawn(torch.ones(len(here)), 1000)
    parts = here[numbers] * shares
    assert abs(float(parts.sum() - here.sum())) < 4 * standard_error(parts) + 1e-9
    met = here[spread(len(here), 1000)].mean()
    assert abs(float(met) - 1 / period) < 4 * (1 / period / 1000) ** 0.5


def test_the_standard_error_is_how_far_samples_are_off() -> None:
    whole = 200 * random(400 * 100, 1).view(400, 100)
    off = (whole.sum(1) - 100 * 100).square().mean().sqrt()
    said = torch.tensor([standard_error(parts) for parts in whole]).mean()
    assert float(said) == pytest.approx(float(off), rel=0.15)
    assert standard_error(torch.ones(1)) == 0
