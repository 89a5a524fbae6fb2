"""What both kinds of tuning show: the program of the kernels, configurations as text."""

from __future__ import annotations

from collections.abc import Mapping

from attndsl.ir.program import Program
from attndsl.plan.budget import KERNELS
from attndsl.plan.kernel_plan import Config
from attndsl.runtime.attention import Attention
from attndsl.runtime.tuned import Kernel
from attndsl.transform.route import form_of, route, used_selects

TITLES = ["tile", "warps", "stages", "shape"]


def kernel_program(attention: Attention) -> Program:
    """The program that kernels are made of: what is chosen is in tensors, as with offsets of 0."""
    program = attention.program
    return route(program, form_of(program)) if used_selects(program) else program


def cells(config: Config | None) -> list[object]:
    """Without a configuration of backward_fused the separate kernels run."""
    if config is None:
        return ["separate", None, None, "-"]
    tile = f"{config.block_m} x {config.block_n}"
    return [tile, config.num_warps, config.num_stages, config.shape]


def row_of_table(widest: int, winners: Mapping[Kernel, Config | None]) -> str:
    """A row of a table of `attndsl/plan/configs.py`.

    >>> row_of_table(64, dict.fromkeys(KERNELS, Config(64, 32, 4, 3)))
    '(64, Sizes(Config(64, 32, 4, 3), Config(64, 32, 4, 3), Config(64, 32, 4, 3))),'
    """
    written = ", ".join(config_text(winners[kernel]) for kernel in KERNELS)
    return f"({widest}, Sizes({written})),"


def config_text(config: Config | None) -> str:
    """As it is written in Python."""
    if config is None:
        return "None"
    numbers = (config.block_m, config.block_n, config.num_warps, config.num_stages)
    shape = "" if config.shape == "peeled" else f', "{config.shape}"'
    return f"Config({', '.join(map(str, numbers))}{shape})"
