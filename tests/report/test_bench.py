"""The suites and the bench command on small sizes; nothing here asserts a time."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from attndsl.cli import main
from attndsl.report.bench import preparation, startup
from attndsl.report.bench import routing as routing_bench
from attndsl.report.bench.cases import Wish, chosen, core, cpu, decode, documents, window
from attndsl.report.bench.command import stoppable
from attndsl.report.bench.comparison import Comparison
from attndsl.report.bench.measurement import Report
from attndsl.report.bench.suites import SUITES, check
from tests.oracle.examples import FOLDER

CUDA = Wish("cuda")


def run(name: str, **options: object) -> Comparison:
    """A suite without FlexAttention, whose compilation takes long."""
    wish = Wish("cpu", peers=("sdpa", "dense"), is_quick=True, **options)  # type: ignore[arg-type]
    found = check(name, wish)()
    assert isinstance(found, Comparison)
    assert found.passed, found.text
    return found


# -- suites of cases ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["core", "documents", "window", "decode", "cpu"])
def test_a_suite_of_cases(name: str) -> None:
    found = run(name, lengths=(70,), dtypes=("float32",))
    of_cases = {entry.case for entry in found.entries}
    assert {case.mask.name for case in of_cases} == {
        case.mask.name for case in chosen(getattr_suite(name)(Wish("cpu")), Wish("cpu"))
    }
    for case in of_cases:
        entries = [entry for entry in found.entries if entry.case == case]
        assert entries[0].name == "attndsl" and len(entries) >= 2
        for entry in entries:
            assert set(entry.passes) == {"forward", *(["backward"] if case.backward else [])}
            assert entry.error < 1e-3
    json.dumps(found.record)


def getattr_suite(name: str):  # type: ignore[no-untyped-def]
    return {
        "core": core,
        "documents": documents,
        "window": window,
        "decode": decode,
        "cpu": cpu,
    }[name]


def test_every_case_of_the_gpu_has_the_sizes_of_the_literature() -> None:
    found = list(core(CUDA))
    assert {case.mask.name for case in found} == {
        *("no mask", "causal", "ALiBi", "window 2048", "documents"),
        *("window 1024", "prefix 1024", "soft-cap 30"),
    }
    flex_perf = [case for case in found if case.shape.batch == 4]
    assert len(flex_perf) == 5 * 5 * 2 * 2  # masks, lengths, widths, heads
    assert {case.shape.keys for case in flex_perf} == {2048 << i for i in range(5)}
    assert {case.dtype for case in found if case.shape.batch == 16} == {"float16"}
    assert all(case.has_steps for case in documents(CUDA))
    assert {case.shape.keys for case in decode(CUDA)} == {8192, 32_768, 131_072}
    assert len(list(cpu(Wish("cpu")))) % (7 * 3 * 4 * 2) == 0


def test_wishes_take_the_place_of_the_suite() -> None:
    wish = Wish("cpu", lengths=(100,), dtypes=("float64",), masks=("ALIBI", "prefix"))
    found = chosen(core(wish), wish)
    assert [case.mask.name for case in found] == ["ALiBi", "prefix 256"]
    assert {(case.shape.queries, case.shape.keys, case.dtype) for case in found} == {
        (100, 100, "float64")
    }


# -- other suites ---------------------------------------------------------------------------


def test_startup_suite() -> None:
    report = startup.startup([FOLDER / "causal.attn", FOLDER / "alibi.attn"], processes=1)
    assert report.rows[0][0] == "import attndsl, after torch"
    assert len(report.rows) == 3


def test_a_report_as_text_and_record() -> None:
    report = Report("suite", "about", ("what", "ms"), (("a", 1.25),), ("a note",))
    assert report.text == "suite: about\n\nwhat    ms\na     1.25\n\na note"
    assert report.record["rows"] == [{"what": "a", "ms": 1.25}]


def test_masks_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "REPEATS", 1)
    report = preparation.masks(lengths=(256, 512), longest_for_peer=256)
    assert [row[:2] for row in report.rows] == [
        (case.name, length) for case in preparation.CASES for length in (256, 512)
    ]
    assert str(report.rows[1][6]).startswith("~")
    json.dumps(report.record)


def test_routing_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_bench, "CHECKED", 160)
    monkeypatch.setitem(routing_bench.REPEATS, "cpu", 1)
    report = routing_bench.routing(lengths=(200, 130), device="cpu")
    assert report.passed, report.text
    names = [case.name for case in routing_bench.CASES]
    assert [row[:3] for row in report.rows] == [
        (name, length, way)
        for length in (200, 130)
        for name in names
        for way in ("forward", "backward")
    ]
    for row in report.rows:
        assert row[5] == row[3] / row[4]  # type: ignore[operator]
        assert abs(sum(row[6:]) - 100) < 1e-6  # type: ignore[arg-type]
        assert (row[6] == 0) == (row[2] == "backward")
    json.dumps(report.record)


def test_routing_does_not_time_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_bench, "CHECKED", 128)
    monkeypatch.setattr(routing_bench, "error_of", lambda case, device: float(case.name == "nsa"))
    report = routing_bench.routing(lengths=(128,), device="cpu")
    assert not report.passed
    assert "nsa differs from its reference by 1: not timed" in report.text
    assert {row[0] for row in report.rows} == {"moba", "seer"}


# -- the command ----------------------------------------------------------------------------


def test_the_command_lists_every_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SUITES)


def test_the_command_writes_what_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.svg"
    words = ["bench", "window", "--device", "cpu", "--lengths", "64", "130", "--only", "window 512"]
    words += ["--peers", "sdpa", "--quick", "--json", str(figures), "--plot", str(picture)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("window: ") and "window 512: batch 1" in out and "times, mean" in out
    (suite,) = json.loads(figures.read_text())
    assert suite["suite"] == "window" and suite["passed"]
    rows = suite["rows"]
    assert {row["keys"] for row in rows} == {64, 130}
    names = {"mask", "batch", "heads", "kv_heads", "queries", "keys", "head_dim", "dtype"}
    names |= {"threads", "mask_every_step", "pairs", "implementation", "relative_error"}
    names |= {"first_s", "mask_ms", "peak_bytes", "gb_per_s"}
    for way in ("forward", "backward"):
        names |= {f"{way}_{what}" for what in ("ms", "spread_ms", "host_ms", "tflops")}
    assert all(set(row) == names for row in rows)
    for row in rows:
        length = row["keys"]
        assert row["pairs"] == row["heads"] * length * (length + 1) // 2
        flops = 4 * row["pairs"] * row["head_dim"]
        assert row["forward_tflops"] == pytest.approx(flops / row["forward_ms"] / 1e9)
    assert picture.read_text().startswith("<svg")


def test_figures_alone_on_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "decode", "--device", "cpu", "--lengths", "64", "--quick", "--peers"]
    assert main([*words, "--json", "-"]) == 0
    (suite,) = json.loads(capsys.readouterr().out)
    assert {row["implementation"].split(",")[0] for row in suite["rows"]} == {"attndsl"}
    assert all(row["gb_per_s"] > 0 and row["backward_ms"] is None for row in suite["rows"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cor"], "did you mean `core`?"),
        (["startup", "--lengths", "8k"], "startup: takes no --lengths; the suites core,"),
        (["neighborhood", "--lengths", "8k"], "neighborhood: takes no --lengths"),
        (["core", "--only", "butterfly"], "no mask of core is called so; there are no mask,"),
        (["cpu", "--device", "cuda"], "cpu: runs on cpu, not on cuda"),
        (["core", "--device", "abacus"], "device: cannot use 'abacus'"),
        (["startup", "--plot", "a.jpg"], "plot: expected a name that ends in .svg or .png"),
    ],
)
def test_a_wrong_wish_says_so_before_anything_runs(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 1
    out, err = capsys.readouterr()
    assert said in err and not out


def test_a_request_to_end_stops_like_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--json", "/nowhere/at/all.json"], "json: there is no folder for"),
        (["--plot", "/nowhere/at/all.svg"], "plot: there is no folder for"),
        (["--lengths", "1"], "lengths: at least 16 tokens"),
    ],
)
def test_what_cannot_end_well_does_not_begin(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "core", "--device", "cpu", *options]) == 1
    assert reason in capsys.readouterr().err
