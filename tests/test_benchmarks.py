"""The benchmark scripts run against the library as it is now; what they measure is not looked at here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import common, reference, sampler, step


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs a script's main in this process with an untaught pupil; returns the table that it leaves."""
    monkeypatch.setattr(reference, "load", lambda kind: (reference.untaught(), reference.tokenizer()))
    monkeypatch.setattr(common, "HERE", tmp_path)
    monkeypatch.setattr(common, "has_peer", lambda: False)
    monkeypatch.delenv("QUATRAIN_PEER", raising=False)

    def run(script, *options: str) -> dict:
        monkeypatch.setattr(sys, "argv", [script.__name__, "--repeats", "1", *options])
        threads = torch.get_num_threads()
        try:
            script.main()
        finally:
            torch.set_num_threads(threads)
        (table,) = (tmp_path / "results").glob("*.json")
        return json.loads(table.read_text())

    return run


def test_a_step_of_the_reference_is_timed(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "PROMPTS", 2)
    monkeypatch.setattr(step, "has_peer", lambda: False)
    (row,) = bench(step, "--task", "short")["rows"]
    assert row[0] == "quatrain" and all(" s (" in cell for cell in row[1:4])


def test_the_sampler_is_timed_beside_generate(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sampler.case
    monkeypatch.setattr(sampler, "case", lambda kind, prompts, group, longest, *rest: whole(kind, min(prompts, 2), group, 4, *rest))
    rows = bench(sampler)["rows"]
    assert len(rows) == 5 and rows[0][1] == "4.0 and 4.0"
