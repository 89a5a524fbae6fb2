"""The bench command on small sizes; nothing here asserts a time."""

from __future__ import annotations

import json

import torch

from attndsl.report import bench
from attndsl.report.bench import cpu, startup
from attndsl.report.measurement import Report


def eager_flex_attention(length, window):
    def call(query, key, value):
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        dense = (distance >= 0) & (distance < window)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)

    return call, 0.0


def test_cpu_suite(monkeypatch):
    monkeypatch.setattr(bench, "flex_attention", eager_flex_attention)
    report = cpu(length=96, heads=2, width=16, window=20)
    assert report.passed
    assert [row[0] for row in report.rows] == [
        "attndsl",
        "FlexAttention, compiled",
        "SDPA, dense mask",
    ]
    assert "ratio" in report.text
    json.dumps(report.record)


def test_a_peer_that_disagrees_is_not_timed(monkeypatch):
    wrong = (lambda query, key, value: query * 0, 0.0)
    monkeypatch.setattr(bench, "flex_attention", lambda length, window: wrong)
    report = cpu(length=96, heads=2, width=16, window=20)
    assert not report.passed
    assert "FlexAttention, compiled" not in [row[0] for row in report.rows]
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
