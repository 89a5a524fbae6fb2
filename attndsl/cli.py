"""The `attndsl` command: reads its arguments, calls what does the work, prints what comes back."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attndsl.diagnostics import ArgumentError, Diagnostic, ProgramError
from attndsl.options import (
    DTYPES,
    bench_options,
    check_options,
    const_option,
    diff_options,
    emit_options,
    explain_options,
    fmt_options,
    run_options,
    show_options,
    tune_options,
)

if TYPE_CHECKING:
    from attndsl.report.arguments import Sizes
    from attndsl.runtime.attention import Attention

HELP = """\
attndsl: a compiler for attention

  attndsl check FILE...     is the program right? says what is wrong, where, and what to write
  attndsl fmt FILE...       lay it out
  attndsl run FILE          run it on random tensors and compare with what it means
  attndsl explain FILE      what will run for given sizes, and why
  attndsl show FILE         draw its mask and what is skipped, here or as an image
  attndsl diff A B          are two masks equal, is one inside the other, and where they differ
  attndsl emit FILE         print any stage, from its tree to SASS and resources
  attndsl tune FILE         find the fastest sizes of its kernels on this GPU, for later calls
  attndsl bench [SUITE]     measure it against its peers

  attndsl COMMAND --help    the options of a command
  attndsl --version

Start with  attndsl run examples/causal.attn
"""

FINE, WRONG, USAGE, BUG, OPEN = 0, 1, 2, 3, 4
SIZE_OPTIONS = {"B": "batch", "H": "heads", "Hk": "kv_heads", "Nq": "nq", "Nk": "nk"}
SIZE_OPTIONS |= {"D": "head_dim", "q_offset": "q_offset", "k_offset": "k_offset"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    0: fine; 1: a wrong program, argument or result, or masks that differ; 2: wrong usage;
    3: a fault of attndsl itself; 4: neither proved nor refuted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return FINE if words else USAGE
    try:
        options = _parser().parse_args(words)
    except SystemExit as stop:  # argparse has printed what is wrong, or the help asked for
        return int(stop.code or 0)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        status = command(options)
        sys.stdout.flush()
        return status
    except ProgramError as error:
        print(str(error).strip(), file=sys.stderr)
        return WRONG
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        return WRONG
    except ArgumentError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        return 130


# -- options --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="attndsl", add_help=False)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], about: str, *, file: bool = True):  # type: ignore[no-untyped-def]
        command = commands.add_parser(name, description=about, allow_abbrev=False)
        command.set_defaults(command=run)
        if file:
            command.add_argument("file", metavar="FILE", help="an .attn file; - reads stdin")
            command.add_argument("--name", help="which attention of the file, where it has several")
            const_option(command)
        return command

    check_options(add("check", _check, "Says what is wrong with programs.", file=False))
    fmt_options(add("fmt", _fmt, "Lays programs out, in place; keeps comments.", file=False))
    emit_options(add("emit", _emit, "Prints a stage of the compilation; needs no GPU."))
    about = "Runs a program on random tensors and compares with the reference in float64."
    run_options(add("run", _run, about))
    explain_options(add("explain", _explain, "Says what will run for given sizes, and why."))
    show_options(add("show", _show, "Draws the mask and its tiles."))
    about = "Says whether two masks are equal, and shows a pair where they differ."
    diff_options(add("diff", _diff, about, file=False))
    about = "Measures the sizes of a program's kernels on a GPU; later calls use the fastest."
    tune_options(add("tune", _tune, about))
    bench_options(add("bench", _bench, "Measures attndsl against its peers.", file=False))
    return parser


# -- commands -------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> int:
    from attndsl.report.files import check_file

    found: list[Diagnostic] = []
    for file in options.files:
        found += check_file(file, dict(options.const), causal=options.causal)
    if options.format == "json":
        print(json.dumps([_as_json(d) for d in found], indent=2))
    elif options.format == "short":
        print("".join(f"{d.short()}\n" for d in found), end="")
    elif found:
        print("\n\n".join(d.render() for d in found))
    errors = sum(d.severity == "error" for d in found)
    if options.format == "full":
        what = "1 file" if len(options.files) == 1 else f"{len(options.files)} files"
        counts = f"{_plural(errors, 'error')}, {_plural(len(found) - errors, 'warning')}"
        fine = "causal" if options.causal else "fine"
        print(f"{what}: {counts if found else fine}", file=sys.stderr)
    if any(d.code == "W205" for d in found) and not errors:
        return OPEN
    return WRONG if errors else FINE


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _as_json(diagnostic: Diagnostic) -> dict[str, object]:
    names = ("file", "line", "column", "length", "severity", "code", "message", "label", "hint")
    record: dict[str, object] = {name: getattr(diagnostic, name) for name in names}
    return {**record, "notes": list(diagnostic.notes)}


def _fmt(options: argparse.Namespace) -> int:
    from attndsl.report.files import read
    from attndsl.syntax.formatter import format_text

    status = FINE
    only_look = options.check or options.diff
    for file in options.files:
        try:
            source = read(file)
            formatted = format_text(source)
        except ProgramError as error:
            print(str(error).strip(), file=sys.stderr)
            status = WRONG
            continue
        changed = formatted != source.text
        if options.diff:
            before, after = (t.splitlines(keepends=True) for t in (source.text, formatted))
            sys.stdout.writelines(difflib.unified_diff(before, after, f"a/{file}", f"b/{file}"))
        if changed and only_look:
            print(f"would lay out {file}", file=sys.stderr)
            status = WRONG
        elif file == "-" and not only_look:
            sys.stdout.write(formatted)
        elif changed:
            _replace(Path(file), formatted)
            print(f"laid out {file}", file=sys.stderr)
    return status


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all; its mode, and where a link leads, stay."""
    path = path.resolve()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(text.encode())
        beside.chmod(path.stat().st_mode)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _emit(options: argparse.Namespace) -> int:
    from attndsl.report.compiled.compile import KernelError
    from attndsl.report.emit import Wish, emit

    wish = Wish(
        stage=options.stage,
        backend=options.backend,
        target=options.target,
        dtype=DTYPES[options.dtype],
        head_dim=options.head_dim,
        value_dim=options.head_dim if options.value_dim is None else options.value_dim,
        kernel=options.kernel,
    )
    try:
        emitted = emit(options.file, options.name, dict(options.const), wish)
    except KernelError as error:
        print(
            f"internal error: {error}\nThis is no fault of the program, but of attndsl or Triton.",
            file=sys.stderr,
        )
        return BUG
    print(json.dumps(emitted.record, indent=2) if options.json else emitted.text.rstrip("\n"))
    return FINE


def _load(
    options: argparse.Namespace, backend: str = "auto", deterministic: bool = True
) -> Attention:
    from attndsl.report.files import load

    return load(options.file, options.name, dict(options.const), backend, deterministic)


def _sizes(options: argparse.Namespace) -> Sizes:
    from attndsl.report.arguments import Sizes

    def first(*values: int | None) -> int:
        return next(value for value in values if value is not None)

    return Sizes(
        batch=options.batch,
        heads=options.heads,
        kv_heads=first(options.kv_heads, options.heads),
        nq=first(options.nq, options.nk, options.length),
        nk=first(options.nk, options.nq, options.length),
        head_dim=options.head_dim,
        value_dim=first(options.value_dim, options.head_dim),
        q_offset=options.q_offset,
        k_offset=options.k_offset,
    )


def _run(options: argparse.Namespace) -> int:
    from attndsl.report.trial import run

    outcome = run(
        _load(options, options.backend),
        _sizes(options),
        dict(options.set),
        dtype=DTYPES[options.dtype],
        device=options.device,
        seed=options.seed,
    )
    print(json.dumps(outcome.record, indent=2) if options.json else outcome.text)
    return FINE if outcome.passed else WRONG


def _explain(options: argparse.Namespace) -> int:
    from attndsl.report.arguments import random_parameters
    from attndsl.report.choices.call import shown_call
    from attndsl.report.explain import describe
    from attndsl.report.requests import target_here

    attention, sizes = _load(options), _sizes(options)
    drawn = random_parameters(attention.program, sizes, dict(options.set), seed=options.seed)
    named = {name: size for name, size in sizes.named.items() if name != "G"}
    shown = shown_call(attention.program, named, sizes.q_offset, sizes.k_offset, None, drawn)
    target = options.target or target_here(attention)
    widths = (sizes.head_dim, sizes.value_dim)
    print(describe(shown, target, DTYPES[options.dtype], *widths))
    return FINE


def _show(options: argparse.Namespace) -> int:
    from attndsl.report.pictures.cells import Wish
    from attndsl.report.pictures.picture import draw_file, show

    attention, sizes = _load(options), _sizes(options)
    wish = Wish(options.block, options.head, options.plain)
    given, seed = dict(options.set), options.seed
    if options.output is None:
        print(show(attention, sizes, given, wish, seed=seed))
    else:
        draw_file(options.output, attention, sizes, given, wish, seed=seed)
        print(f"drew {options.output}", file=sys.stderr)
    return FINE


def _diff(options: argparse.Namespace) -> int:
    from attndsl.report.differences.difference import compare_files
    from attndsl.report.differences.verdict import describe

    sizes = {name: getattr(options, option) for name, option in SIZE_OPTIONS.items()}
    found = compare_files(
        (options.a, options.b),
        dict(options.const),
        {name: size for name, size in sizes.items() if size is not None},
        [{**dict(options.set), **dict(own)} for own in (options.set_a, options.set_b)],
        use_defaults=options.defaults,
        tries=options.tries,
        seed=options.seed,
    )
    print(describe(found))
    return {True: FINE, False: WRONG, None: OPEN}[found.are_equal]


def _tune(options: argparse.Namespace) -> int:
    attention = _load(options, "triton", not options.nondeterministic)
    sizes, dtype = _sizes(options), DTYPES[options.dtype]
    if options.dry_run:
        return _list_candidates(attention, sizes, dtype, options)
    for option in ("target", "kernel"):
        if getattr(options, option):
            raise ArgumentError(f"--{option} is an option of --dry-run")
    from attndsl.report.tuning.tune import tune

    given, seed = dict(options.set), options.seed
    found = tune(attention, sizes, given, dtype=dtype, device=options.device, seed=seed)
    text = found.rows() if options.table else found.text
    print(json.dumps(found.record, indent=2) if options.json else text)
    return FINE if found.passed else WRONG


def _list_candidates(
    attention: Attention, sizes: Sizes, dtype: str, options: argparse.Namespace
) -> int:
    from attndsl.plan.budget import KERNELS
    from attndsl.report.tuning.dry import dry_run

    found = dry_run(
        attention,
        target=options.target or "sm_90",
        dtype=dtype,
        head_dim=sizes.head_dim,
        value_dim=sizes.value_dim,
        kernels=(options.kernel,) if options.kernel else KERNELS,
    )
    print(json.dumps(found.record, indent=2) if options.json else found.text)
    return FINE


def _bench(options: argparse.Namespace) -> int:
    from attndsl.report.bench.command import Wishes, bench, listing

    if options.list:
        print(listing())
        return FINE
    names = ("device", "lengths", "only", "quick")
    given = {name: getattr(options, name) for name in names if getattr(options, name)}
    for name in ("peers", "ours"):  # none of them is a wish, too
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    if options.dtype:
        given["dtype"] = [DTYPES[name] for name in options.dtype]
    return FINE if bench(Wishes(options.suites, given, options.json, options.plot)) else WRONG


def _version() -> str:
    from importlib import metadata

    from attndsl import __version__

    def installed(package: str) -> str:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            return f"no {package}"

    return f"attndsl {__version__} ({installed('torch')}, {installed('triton')})"


if __name__ == "__main__":
    sys.exit(main())
