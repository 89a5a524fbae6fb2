"""What the commands take: their options, and how the text of one is read."""

from __future__ import annotations

import argparse

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
STAGES = ("tree", "ir", "plan", "kernel", "ttir", "ttgir", "ptx", "amdgcn", "sass", "resources")
Value = bool | int | float


def const_option(parser: argparse.ArgumentParser) -> None:
    set_option(parser, "--const", "the value of a const parameter; may be repeated")


def set_option(parser: argparse.ArgumentParser, option: str, about: str) -> None:
    parser.add_argument(
        option, metavar="NAME=VALUE", type=assignment, action="append", default=[], help=about
    )


def assignment(text: str) -> tuple[str, Value]:
    """`window=128`, `causal=true`, `cap=inf`."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for read in (int, float):
        try:
            return name, read(value)
        except ValueError:
            continue
    raise argparse.ArgumentTypeError(f"{value!r} is no number, true or false")


def count(text: str) -> int:
    """A size: at least 0, `4k` is 4096."""
    factor = {"k": 1024, "m": 1024 * 1024}.get(text[-1:].lower(), 1)
    try:
        value = int(text if factor == 1 else text[:-1]) * factor
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 4096, 4k or 1m")
    return value


def extent(text: str) -> int:
    """A size of at least 1."""
    value = count(text)
    if value < 1:
        raise argparse.ArgumentTypeError("it is at least 1")
    return value


def size_options(parser: argparse.ArgumentParser, length: int) -> None:
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--batch", type=count, default=1, metavar="N")
    sizes.add_argument("--heads", type=count, default=2, metavar="N", help="query heads")
    sizes.add_argument("--kv-heads", type=count, metavar="N", help="key heads; those of queries")
    about = f"queries; {length}, or nk" if length else "queries: compare this one call"
    sizes.add_argument("--nq", type=count, metavar="N", help=about)
    sizes.add_argument("--nk", type=count, metavar="N", help="keys; as many as queries")
    sizes.add_argument("--head-dim", type=count, default=64, metavar="N")
    sizes.add_argument("--value-dim", type=count, metavar="N", help="that of queries and keys")
    sizes.add_argument("--q-offset", type=int, default=0, metavar="N")
    sizes.add_argument("--k-offset", type=int, default=0, metavar="N")
    sizes.set_defaults(length=length)
    about = "a run-time parameter, or the size of a tensor's own dimension; may be repeated"
    set_option(parser, "--set", about)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random tensors")


def check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="an .attn file; - reads stdin")
    parser.add_argument("--format", choices=("full", "short", "json"), default="full")
    about = "also prove that no query reads a later key; exit 1 if one does, 4 if neither is proved"
    parser.add_argument("--causal", action="store_true", help=about)
    const_option(parser)


def fmt_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="an .attn file; - reads stdin")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if it would")
    parser.add_argument("--diff", action="store_true", help="print what would change, likewise")


def emit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=STAGES, default="kernel", help="kernel unless given")
    parser.add_argument("--target", choices=("sm_80", "sm_90", "sm_100", "gfx942"), default="sm_90")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--head-dim", type=count, default=128, metavar="N")
    parser.add_argument("--value-dim", type=count, metavar="N")
    parser.add_argument("--kernel", metavar="NAME", help="only this one: forward, backward_dq, ...")
    parser.add_argument("--backend", choices=("triton", "torch", "cpp"), default="triton")
    parser.add_argument("--json", action="store_true")


def run_options(parser: argparse.ArgumentParser) -> None:
    size_options(parser, 1024)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--backend", choices=("auto", "triton", "torch", "cpp"), default="auto")
    parser.add_argument("--json", action="store_true")


def explain_options(parser: argparse.ArgumentParser) -> None:
    size_options(parser, 4096)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    targets = ("sm_80", "sm_90", "sm_100", "gfx942", "cpu")
    parser.add_argument("--target", choices=targets, help="the GPU here, or sm_90, unless given")


def show_options(parser: argparse.ArgumentParser) -> None:
    size_options(parser, 64)
    parser.add_argument("--block", type=extent, metavar="N", help="rows and columns of a tile")
    parser.add_argument("--plain", action="store_true", help="ASCII only")
    parser.add_argument("-o", "--output", metavar="FILE", help="an image: .png or .svg")
    parser.add_argument("--head", type=count, metavar="N", help="only this head")


def diff_options(parser: argparse.ArgumentParser) -> None:
    for side in "ab":
        about = "an .attn file, or FILE:NAME for one of its attentions"
        parser.add_argument(side, metavar=side.upper(), help=about)
    const_option(parser)
    size_options(parser, 0)
    parser.set_defaults(batch=None, heads=None, head_dim=None, q_offset=None, k_offset=None)
    set_option(parser, "--set-a", "a parameter of A alone")
    set_option(parser, "--set-b", "a parameter of B alone")
    about = "parameters that are not set have their defaults; without it they may be anything"
    parser.add_argument("--defaults", action="store_true", help=about)
    parser.add_argument("--tries", type=count, default=400, metavar="N", help="random calls")


def tune_options(parser: argparse.ArgumentParser) -> None:
    size_options(parser, 4096)
    parser.add_argument("--length", type=extent, metavar="N", help="queries and keys; 4096")
    parser.add_argument("--dtype", choices=tuple(DTYPES)[:3], default="bf16")
    parser.add_argument("--device", help="the GPU: cuda unless given")
    about = "kernels whose results need not be the same bits in every run"
    parser.add_argument("--nondeterministic", action="store_true", help=about)
    about = "time nothing: list the candidates with registers, spills and shared memory"
    parser.add_argument("--dry-run", action="store_true", help=about)
    targets = ("sm_80", "sm_90", "sm_100", "gfx942")
    about = "of a dry run; sm_90 unless given"
    parser.add_argument("--target", choices=targets, help=about)
    kernels = ("forward", "backward_dq", "backward_dkv")
    about = "of a dry run: only the candidates of this one"
    parser.add_argument("--kernel", choices=kernels, help=about)
    about = "print the winners as rows of the table of defaults"
    parser.add_argument("--table", action="store_true", help=about)
    parser.add_argument("--json", action="store_true")


def bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="all unless given; see --list")
    parser.add_argument("--list", action="store_true", help="the suites, with a line about each")
    parser.add_argument("--quick", action="store_true", help="a few cases, a few turns of each")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    about = "tokens instead of the suite's, such as 8k 64k"
    parser.add_argument("--lengths", nargs="+", type=extent, metavar="N", help=about)
    about = "instead of the suite's"
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), help=about)
    about = "masks with one of these in their names"
    parser.add_argument("--only", nargs="+", metavar="MASK", help=about)
    about = "instead of all: flex and tuned (FlexAttention), sdpa, dense"
    parser.add_argument(
        "--peers", nargs="*", choices=("flex", "tuned", "sdpa", "dense"), help=about
    )
    about = "attndsl with sizes of the table, measured now, not deterministic, by PyTorch"
    variants = ("table", "tuned", "fast", "torch")
    parser.add_argument("--ours", nargs="*", choices=variants, help=about)
    parser.add_argument("--json", metavar="FILE", help="every figure; - prints that alone")
    parser.add_argument("--plot", metavar="FILE", help="speed over length: .svg or .png")
