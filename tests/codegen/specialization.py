"""Print, for each kernel of a module, how many different keys its launches have over many calls.

Each kernel is replaced by a recorder that binds the arguments as Triton does before it looks a
compiled kernel up: two launches with one key run one compiled kernel.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from attndsl import backend
from attndsl.plan.kernel_plan import KernelPlan, Request
from attndsl.plan.planner import plan
from attndsl.semantics import analyse
from attndsl.source import Source
from attndsl.transform.simplify import simplify

TEXT = """\
attention wide(bias: float[H, 2 * R + 1], doc: int[B, Nk], R: int, w: int, cap: float, on: bool):
    mask (0 <= q - k < w and doc[b, k] != 1) or not on
    score cap * tanh(score / cap) + bias[h, q - k + R]
"""
KERNELS = (
    "summarise_0",
    "classify_rows",
    "classify_columns",
    "forward",
    "backward_delta",
    "backward_dq",
    "backward_dkv",
    "backward_tables",
    "decode",
    "decode_part",
    "decode_merge",
    "windows",
)
ROWS = (1, 2, 16, 17, 33, 48, 65, 80)
COLUMNS = (1, 2, 16, 17, 33, 48, 300)


class Recorder:
    """Stands for a kernel: `recorder[grid](...)` notes the key of the launch, by the sizes of its
    tiles: those of forward and of each backward kernel are the plan's."""

    def __init__(self, kernel: JITFunction[Any]) -> None:
        target = make_backend(GPUTarget("cuda", 90, 32))
        self.bind = create_function_from_signature(kernel.signature, kernel.params, target)
        self.keys: dict[tuple[int, int], set[str]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Recorder:
        return self

    def __call__(self, *args: Any, **options: Any) -> None:
        _, specialization, rest = self.bind(*args, **options)
        keys = self.keys.setdefault((options["BLOCK_M"], options["BLOCK_N"]), set())
        keys.add(str((specialization, sorted(rest.items()))))


def make_plan() -> KernelPlan:
    program = simplify(analyse(Source("<text>", TEXT), None, {}))
    return plan(
        program,
        Request(
            backend="triton",
            target="sm_90",
            dtype="bfloat16",
            head_dim=64,
            value_dim=64,
            grads=("bias",),
            tensor_dtypes=("float32", "int32"),
        ),
    )


def load(text: str) -> ModuleType:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "generated.py"
        path.write_text(text, encoding="utf-8")
        found = importlib.util.spec_from_file_location("generated", path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module


def call(module: ModuleType, rows: int, columns: int, number: int) -> None:
    """A forward and a backward call with everything that a caller may change changed."""
    batch, heads = (1, 2, 3, 1, 30)[number % 5], 1 + number % 2
    query = torch.zeros(batch, heads, rows, 64, dtype=torch.bfloat16)
    key = torch.zeros(batch, columns, heads, 64, dtype=torch.bfloat16).transpose(1, 2)
    value = torch.zeros(batch, heads, columns, 64, dtype=torch.bfloat16)
    bias = torch.zeros(heads * (2 * number + 1) + number)[number:].view(heads, -1)
    doc = torch.zeros(batch, columns, dtype=torch.int32)
    scale, offset = float(number), (0, 1, 16, -5)[number % 4]
    values = (number, (1, 16, 2**30 - 1)[number % 3], float(number), bool(number % 2))
    rest = (scale, offset, -offset, None, (bias, doc), values)
    out, raw, stat = module.run_forward(query, key, value, *rest)
    module.run_backward(out, stat, query, key, value, out, stat, *rest)


def main() -> None:
    module = load(backend.load("attndsl.codegen", "triton").emit(make_plan()))
    recorders = {name: Recorder(getattr(module, name)) for name in KERNELS}
    vars(module).update(recorders)
    for number, (rows, columns) in enumerate((r, c) for r in ROWS for c in COLUMNS):
        call(module, rows, columns, number)
    for name, recorder in recorders.items():
        print(name, max(map(len, recorder.keys.values())))


if __name__ == "__main__":
    main()
