"""The embedded model of fast weights: built once, kept, the same again; its documents are learnt whole."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.parts.likelihoods import LogProb
from quatrain.tasks.embedded_delta import DEFAULTS, tiny_delta
from quatrain.tasks.letters import letters


def test_it_is_built_once_and_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path))
    before = torch.random.get_rng_state()
    policy = tiny_delta(show=False, examples=8, rows=4, hidden=16, inner=16)
    assert len(list(tmp_path.iterdir())) == 1 and torch.equal(torch.random.get_rng_state(), before)
    again = tiny_delta(show=False, examples=8, rows=4, hidden=16, inner=16)
    assert len(list(tmp_path.iterdir())) == 1 and again.defaults == DEFAULTS
    task = letters("letters:recall+needle")
    batch = task.demonstrations(policy, task.starts("train", 0, 4))
    assert torch.equal(policy.score(batch, [LogProb()])[LogProb()], again.score(batch, [LogProb()])[LogProb()])
    with pytest.raises(QuatrainError, match="no field"):
        tiny_delta(exampels=8)
