"""The miniature of what trees save, on an untaught model."""

from __future__ import annotations

import pytest

from quatrain.experiments.miniatures.tree_savings import savings
from quatrain.models.causal_lm import CausalLM
from quatrain.models.decoding import Stops
from quatrain.tasks import embedded
from quatrain.tasks.warm_start import Lesson


def test_a_full_binary_tree_by_hand(monkeypatch: pytest.MonkeyPatch):
    """Eight leaves of four segments, none of which ends: 2 + 4 + 8 + 8 of 32 segments."""
    tokens = embedded.tokenizer()
    policy = CausalLM(embedded.untrained(Lesson(hidden=16, inner=16, layers=1), tokens), tokens)
    monkeypatch.setattr(CausalLM, "_stops_for", lambda self, texts: Stops(()))
    monkeypatch.setattr(embedded, "tiny", lambda name: policy)
    found = savings(0, task="letters:chain", segment=3, prompts=4, max_actions=12)
    assert found == {"tree": pytest.approx(22 / 32), "independent": 1.0, "tree solved": 0.0, "independent solved": 0.0}
