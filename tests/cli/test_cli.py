"""The `attndsl` command: what it prints where, and its exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import attndsl
from attndsl.cli import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
WINDOW = str(EXAMPLES / "gemma2_local.attn")
WRONG = "attention wrong(window: int = 4):\n    mask q - k < wndow\n    score scor\n"
UNTIDY = "attention  a( n:int=4 ) :\n    mask   q-k<n   # a comment\n"
SMALL = ["--nq", "40", "--head-dim", "16"]


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "wrong.attn"
    path.write_text(WRONG)
    return str(path)


@pytest.fixture
def untidy(tmp_path):
    path = tmp_path / "untidy.attn"
    path.write_text(UNTIDY)
    return path


# -- the command itself ---------------------------------------------------------------------


def command(*words, stdin=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "attndsl", *words],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_python_m_attndsl():
    done = command("check", WINDOW, "--format", "short")
    assert (done.returncode, done.stdout) == (0, "")


def test_stdin():
    done = command("check", "-", "--format", "short", stdin=WRONG)
    assert done.returncode == 1
    assert done.stdout.startswith("<stdin>:2:18: error[E101]")


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("check", "fmt", "run", "explain", "show", "diff", "emit", "bench"):
        assert f"attndsl {name}" in text
    assert len(text.splitlines()) < 20
    assert max(map(len, text.splitlines())) <= 100


COMMANDS = ["check", "fmt", "run", "explain", "show", "diff", "emit", "bench"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name, capsys):
    assert main([name, "--help"]) == 0
    assert name in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert attndsl.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["chek", WINDOW],
        ["check"],
        ["emit", WINDOW, "--stage", "no"],
        ["emit", WINDOW, "--head-dim", "x"],
        ["run", WINDOW, "--set", "window"],
        ["run", WINDOW, "--set", "window=wide"],
        ["diff", WINDOW],
    ],
)
def test_wrong_usage(words, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert bool(words) == bool(err) and bool(words) != bool(out)


def test_a_file_that_is_not_there(capsys):
    assert main(["explain", "no_such.attn"]) == 1
    out, err = capsys.readouterr()
    assert not out and "E001" in err


# -- check ----------------------------------------------------------------------------------


def test_check_says_what_is_wrong_and_where(wrong, capsys):
    assert main(["check", wrong, WINDOW]) == 1
    out, err = capsys.readouterr()
    assert "did you mean `window`?" in out and "^^^^^" in out
    assert err == "2 files: 2 errors, 0 warnings\n"


def test_check_as_json(wrong, capsys):
    assert main(["check", wrong, "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [f["code"] for f in found] == ["E101", "E101"]
    first = found[0]
    assert (first["file"], first["line"], first["column"], first["length"]) == (wrong, 2, 18, 5)
    assert set(first) == {
        "file", "line", "column", "length", "severity", "code", "message", "label", "hint", "notes"
    }  # fmt: skip


def test_check_of_a_fine_program_as_json(capsys):
    assert main(["check", WINDOW, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_warnings_do_not_fail(tmp_path, capsys):
    path = tmp_path / "never.attn"
    path.write_text("attention never(unused: int = 3):\n    mask k < q and q < k\n")
    assert main(["check", str(path), "--format", "short"]) == 0
    assert "warning[" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.attn")), ids=lambda path: path.stem)
def test_examples_have_no_errors(path):
    assert main(["check", str(path)]) == 0


@pytest.mark.parametrize(
    ("mask", "status", "word"),
    [
        ("0 <= q - k < 8", 0, ""),
        ("abs(q - k) < 8", 1, "error[E201]"),
        ("float(k) <= float(q)", 4, "warning[W205]"),
    ],
)
def test_check_causal(mask, status, word, tmp_path, capsys):
    path = tmp_path / "test.attn"
    path.write_text(f"attention test():\n    mask {mask}\n")
    assert main(["check", str(path), "--format", "short"]) == 0
    capsys.readouterr()
    assert main(["check", "--causal", str(path), "--format", "short"]) == status
    assert word in capsys.readouterr().out


# -- fmt ------------------------------------------------------------------------------------


def test_fmt_in_place_keeps_comment_and_mode(untidy, capsys):
    untidy.chmod(0o640)
    assert main(["fmt", str(untidy)]) == 0
    text = untidy.read_text()
    assert text != UNTIDY and "# a comment" in text
    assert untidy.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in untidy.parent.iterdir()] == ["untidy.attn"]
    assert main(["fmt", "--check", str(untidy)]) == 0
    assert not capsys.readouterr().out


@pytest.mark.parametrize("option", ["--check", "--diff"])
def test_fmt_that_only_looks(untidy, option, capsys):
    assert main(["fmt", option, str(untidy)]) == 1
    assert untidy.read_text() == UNTIDY
    out = capsys.readouterr().out
    assert ("\n-attention  a( n:int=4 ) :" in out) == (option == "--diff")


def test_fmt_from_stdin():
    done = command("fmt", "-", stdin=UNTIDY)
    assert done.returncode == 0
    assert done.stdout.startswith("attention a(n: int = 4):\n")


def test_fmt_goes_on_after_a_wrong_file(tmp_path, untidy, capsys):
    broken = tmp_path / "broken.attn"
    broken.write_text("attention (\n")
    assert main(["fmt", str(broken), str(untidy)]) == 1
    assert "error[" in capsys.readouterr().err
    assert broken.read_text() == "attention (\n"
    assert untidy.read_text() != UNTIDY


# -- emit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "part"),
    [
        ("tree", "window"),
        ("ir", "program gemma2_local"),
        ("plan", "keys ["),
        ("kernel", "@triton.jit"),
    ],
)
def test_emit(stage, part, capsys):
    assert main(["emit", WINDOW, "--stage", stage]) == 0
    text = capsys.readouterr().out
    assert part in text
    assert main(["emit", WINDOW, "--stage", stage, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["stage"] == stage and record["text"].rstrip("\n") == text.rstrip("\n")


def test_emit_the_torch_generator(capsys):
    assert main(["emit", WINDOW, "--backend", "torch", "--dtype", "fp32"]) == 0
    text = capsys.readouterr().out
    assert "def run_forward(" in text and "triton" not in text
    assert main(["emit", WINDOW, "--backend", "torch", "--stage", "ptx"]) == 1


@pytest.mark.parametrize(("name", "part"), [("moba", "routed_merge"), ("seer", "t_picked_sums")])
def test_emit_what_reads_choices(name, part, capsys):
    path = str(EXAMPLES / f"{name}.attn")
    assert main(["emit", path]) == 0
    assert part in capsys.readouterr().out
    for stage, backend in (("plan", "triton"), ("kernel", "torch")):
        assert main(["emit", path, "--stage", stage, "--backend", backend]) == 0
        assert name in capsys.readouterr().out
    assert main(["emit", path, "--stage", "ir"]) == 0
    assert "select" in capsys.readouterr().out


@pytest.mark.parametrize("example", ["moba", "seer"])
def test_emit_what_reads_a_choice(example, capsys):
    """The module takes what a select chose as a tensor, in either form."""
    file = str(EXAMPLES / f"{example}.attn")
    for words in (["--stage", "plan"], [], ["--backend", "torch"]):
        assert main(["emit", file, *words]) == 0
        text = capsys.readouterr().out
        assert "chosen" not in text
        assert "plan" in words or "def run_forward(" in text
    assert main(["emit", file, "--stage", "ir"]) == 0
    assert "chosen" in capsys.readouterr().out


def test_emit_resources(capsys):
    words = ["emit", WINDOW, "--stage", "resources", "--head-dim", "64"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [kernel["kernel"] for kernel in found]
    assert {"forward", "backward_dq", "backward_dkv"} <= set(names)
    for kernel in found:
        figures = {"registers", "spill_bytes", "shared_bytes", "wgmma", "tma"}
        assert all(isinstance(kernel[figure], int) for figure in figures)
    assert next(k for k in found if k["kernel"] == "forward")["wgmma"] > 0


@pytest.mark.parametrize(
    ("stage", "target", "part"),
    [
        ("ttir", "sm_90", "tt.dot"),
        ("ttgir", "sm_90", "ttng.warp_group_dot"),
        ("ptx", "sm_80", "mma.sync"),
        ("sass", "sm_90", "HGMMA"),
        ("amdgcn", "gfx942", "v_mfma"),
    ],
)
def test_emit_what_triton_makes(stage, target, part, capsys):
    words = ["emit", WINDOW, "--stage", stage, "--target", target, "--kernel", "forward"]
    assert main([*words, "--head-dim", "64"]) == 0
    assert part in capsys.readouterr().out


def test_emit_a_kernel_that_is_not_there(capsys):
    assert main(["emit", WINDOW, "--stage", "ptx", "--kernel", "backward"]) == 1
    assert "there are forward, " in capsys.readouterr().err


def test_emit_a_stage_that_the_target_lacks(capsys):
    words = ["emit", WINDOW, "--stage", "ptx", "--target", "gfx942", "--kernel", "forward"]
    assert main([*words, "--head-dim", "64"]) == 1
    assert "it has ttir, ttgir, amdgcn" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--head-dim", "300"], ["--head-dim", "0"], ["--value-dim", "257"], ["--dtype", "fp64"]],
)
def test_emit_what_triton_has_no_kernels_for(words, capsys):
    assert main(["emit", WINDOW, *words]) == 1
    assert capsys.readouterr().err.startswith("error: ")


# -- run, explain, show ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_run(backend, capsys):
    words = ["run", WINDOW, *SMALL, "--set", "window=9", "--kv-heads", "1", "--backend", backend]
    assert main([*words, "--device", "cpu", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["passed"] and record["backend"] == backend
    names = ["out", "lse", "grad query", "grad key", "grad value"]
    assert [result["name"] for result in record["results"]] == names
    assert record["parameters"] == {"window": "9", "cap": "50.0"}


def test_run_prints_a_table(capsys):
    words = ["run", str(EXAMPLES / "gpt_oss.attn"), *SMALL, "--backend", "torch"]
    assert main([*words, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "grad sink" in out and "agrees with the reference" in out and "backward" in out


def test_run_with_a_parameter_that_is_not_there(capsys):
    assert main(["run", WINDOW, "--set", "windw=3", *SMALL]) == 1
    assert "did you mean `window`?" in capsys.readouterr().err


def test_run_on_a_device_that_is_not_there(capsys):
    assert main(["run", WINDOW, "--device", "abacus", *SMALL]) == 1
    assert "abacus" in capsys.readouterr().err


def test_explain(capsys):
    words = ["explain", WINDOW, "--set", "window=1024", "--nq", "4096", "--heads", "1"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "mask     0 <= q - k < window" in out
    assert "keys     q_lo - window + 1 .. q_hi\n" in out
    # The middle tile of queries, of as many rows as it has: a power of two.
    assert re.search(r"rows 2048 \.\. (\d+) reach columns 1025 \.\. \1\b", out)


def test_show(capsys):
    assert main(["show", WINDOW, "--nq", "4", "--set", "window=2", "--plain"]) == 0
    rows = [line.strip() for line in capsys.readouterr().out.splitlines()[2:6]]
    assert [row.replace(" ", "") for row in rows] == ["#...", "##..", ".##.", "..##"]


def test_show_tiles(capsys):
    words = ["show", WINDOW, "--nq", "512", "--block", "128", "--set", "window=256", "--plain"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "a cell is a tile of 128 x 128" in out and "full 3" in out


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_show_as_an_image(suffix, tmp_path, capsys):
    path = tmp_path / f"mask.{suffix}"
    words = ["show", WINDOW, "--nq", "512", "--block", "128", "--set", "window=256"]
    assert main([*words, "-o", str(path)]) == 0
    out, err = capsys.readouterr()
    assert not out and f"drew {path}" in err
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<svg")


def test_show_of_one_head(capsys):
    words = ["show", str(EXAMPLES / "duo_heads.attn"), "--nq", "16", "--heads", "4"]
    assert main([*words, "--plain"]) == 0
    assert "head 3" in capsys.readouterr().out
    assert main([*words, "--plain", "--head", "3"]) == 0
    assert "head 2" not in capsys.readouterr().out
    assert main([*words, "--head", "4"]) == 1
    assert "there is no head 4 of 4" in capsys.readouterr().err


def test_show_to_no_kind_of_image(tmp_path, capsys):
    assert main(["show", WINDOW, "-o", str(tmp_path / "mask.bmp")]) == 1
    assert "ends in .png or .svg" in capsys.readouterr().err


# -- diff -----------------------------------------------------------------------------------

MISTRAL = str(EXAMPLES / "mistral.attn")
DIFFERENCES = [
    ([WINDOW, MISTRAL], 0, "equal: proved for every call"),
    ([WINDOW, str(EXAMPLES / "causal.attn")], 1, "A lies inside B (proved for every call)"),
    ([WINDOW, MISTRAL, "--set-b", "window=9"], 1, "in A and not in B"),
    ([WINDOW, MISTRAL, "--set", "window=9", "--nq", "64"], 0, "with window = 9"),
    ([WINDOW, f"{MISTRAL}:mistral", "--defaults"], 0, "window = 4096"),
    ([WINDOW, str(EXAMPLES / "causal.attn"), "--nq", "4k"], 0, "every pair compared"),
]


@pytest.mark.parametrize(("words", "status", "part"), DIFFERENCES)
def test_diff(words, status, part, capsys):
    assert main(["diff", *words]) == status
    assert part in capsys.readouterr().out


def test_diff_that_is_open(tmp_path, capsys):
    path = tmp_path / "floats.attn"
    path.write_text("attention floats():\n    mask float(k) <= float(q)\n")
    assert main(["diff", str(path), str(EXAMPLES / "causal.attn"), "--tries", "20"]) == 4
    assert "looked at 20 small random calls" in capsys.readouterr().out


def test_diff_of_a_name_that_is_not_there(capsys):
    assert main(["diff", WINDOW, f"{MISTRAL}:mistrl"]) == 1
    assert "did you mean `mistral`" in capsys.readouterr().err
    assert main(["diff", WINDOW, MISTRAL, "--set", "wndow=3"]) == 1
    assert "did you mean `window`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "examples/causal.attn", "--block", "0"], "it is at least 1"),
        (["show", "examples/causal.attn", "--nq", "1e3"], "write 4096, 4k or 1m"),
        (["show", "examples/causal.attn", "-o", "none/such/x.png"], "none/such/x.png: No such"),
        (["explain", "examples/causal.attn", "--set", "H=2"], "`H` is a size of the call"),
    ],
)
def test_says_what_is_wrong_with_an_option(words, said, capsys):
    assert main(words) in (1, 2)
    assert said in capsys.readouterr().err
