"""The bench command on small sizes; nothing here asserts a time."""

from __future__ import annotations

import json

import torch

from attndsl.cli import main
from attndsl.report.bench import cpu as engine
from attndsl.report.bench import preparation
from attndsl.report.bench import routing as routing_bench
from attndsl.report.bench import suites as bench
from attndsl.report.bench.measurement import Report
from attndsl.report.bench.suites import startup


def dense_attention(kept, length, anew=False):
    """Stands for FlexAttention, whose compilation takes long."""

    def call(inputs):
        place = torch.arange(length)
        return engine.sdpa(inputs, kept(place, place, place[:, None], place[None, :]))

    return call


def test_cpu_suite(monkeypatch):
    monkeypatch.setattr(engine, "flex_attention", dense_attention)
    report = engine.cpu(length=96, heads=2, width=16, window=20)
    assert report.passed
    names = ["attndsl", "FlexAttention, compiled", "SDPA, dense mask"]
    assert [row[1] for row in report.rows] == names * 2
    assert "ratio" in report.text
    json.dumps(report.record)


def test_a_peer_that_disagrees_is_not_timed(monkeypatch):
    monkeypatch.setattr(engine, "flex_attention", lambda *given, **more: lambda inputs: inputs[0])
    report = engine.cpu(length=96, heads=2, width=16, window=20)
    assert not report.passed
    assert "FlexAttention, compiled" not in [row[1] for row in report.rows]
    assert "not timed" in report.text


def test_startup_suite(monkeypatch):
    examples = bench.example_files()
    monkeypatch.setattr(bench, "example_files", lambda: examples[:2])
    report = startup(processes=1)
    assert report.rows[0][0] == "import attndsl, after torch"
    assert len(report.rows) == 3


def test_a_report_as_text_and_record():
    report = Report("suite", "about", ("what", "ms"), (("a", 1.25),), ("a note",))
    assert report.text == "suite: about\n\nwhat    ms\na     1.25\n\na note"
    assert report.record["rows"] == [{"what": "a", "ms": 1.25}]


def test_the_command_knows_every_suite(capsys):
    main(["bench", "--help"])
    assert "{" + ",".join(bench.SUITES) + "}" in capsys.readouterr().out


def test_masks_suite(monkeypatch):
    monkeypatch.setattr(preparation, "REPEATS", 1)
    report = preparation.masks(lengths=(256, 512), longest_for_peer=256)
    assert [row[:2] for row in report.rows] == [
        (case.name, length) for case in preparation.CASES for length in (256, 512)
    ]
    assert report.rows[1][6].startswith("~")
    json.dumps(report.record)


def test_routing_suite(monkeypatch):
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
        assert row[5] == row[3] / row[4]
        assert abs(sum(row[6:]) - 100) < 1e-6
        assert (row[6] == 0) == (row[2] == "backward")
    json.dumps(report.record)


def test_what_differs_is_not_timed(monkeypatch):
    monkeypatch.setattr(routing_bench, "CHECKED", 128)
    monkeypatch.setattr(routing_bench, "error_of", lambda case, device: float(case.name == "nsa"))
    report = routing_bench.routing(lengths=(128,), device="cpu")
    assert not report.passed
    assert "nsa differs from its reference by 1: not timed" in report.text
    assert {row[0] for row in report.rows} == {"moba", "seer"}


def test_only_one_suite_takes_lengths(capsys):
    assert main(["bench", "startup", "--lengths", "8k"]) == 1
    assert "only the suite `routing`" in capsys.readouterr().err
