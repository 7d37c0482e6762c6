"""riskpo: autograd of the mixed value at risk of bundles, paper's and released code's, and the tracker's resting point."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from quatrain.controllers.quantiles import QuantileTracker
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.risk import TailWeighted, tail_value
from quatrain.rollout.bundles import Bundles, bundled
from quatrain.training.driver import build, run
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.toy import Case, ToyTask, assert_same, autograd, case, gradient


def members(here: Case) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for row, key in enumerate(here.batch["bundle"].tolist()):
        found.setdefault(key, []).append(row)
    return found


def written_out(
    here: Case, low: float, high: float, version: str, seeking: bool, size: int = 3, a: float = 0.2, b: float = 0.8
) -> torch.Tensor:
    """[N] the row's advantage, bundle by bundle, in the paper's and in the code's own terms (w = 0.5)."""
    reward, prompt, block = (here.batch[name].tolist() for name in ("reward", "prompt", "block"))
    mean = {key: sum(r for r, p in zip(reward, prompt, strict=True) if p == key) / prompt.count(key) for key in prompt}
    score = {key: size * sum(reward[row] for row in rows) / len(rows) for key, rows in members(here).items()}
    advantage = torch.zeros(len(reward), dtype=torch.float64)
    for key, rows in members(here).items():
        s = score[key]
        below, middle, beyond = max(low - s, 0.0), max(s - low, 0.0) - max(s - high, 0.0), max(s - high, 0.0)
        if version == "paper":
            value = middle + low - high + (1.5 * beyond if seeking else -1.5 * below)
            for row in rows:
                advantage[row] = value
            continue
        middle, tail = middle / (b - a), beyond / a if seeking else -below / a
        own = torch.tensor([score[other] for other, them in members(here).items() if block[them[0]] == block[rows[0]]], dtype=torch.float64)
        value = (1.5 * tail + middle) / 2.5 / float(own.std()) if float(own.std()) > 1e-8 else 0.0
        centred = [reward[row] - mean[prompt[row]] for row in rows]
        for row, share in zip(rows, centred, strict=True):
            advantage[row] = value * (share / sum(centred) if abs(sum(centred)) > 1e-8 else 1 / len(rows))
    return advantage


QUANTILES = {"quantile_low": 0.9, "quantile_high": 1.8}


@pytest.mark.parametrize("attitude", ["averse", "seeking"])
@pytest.mark.parametrize("version", ["paper", "code"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, version: str, attitude: str):
    here = case(seed, prompts=7)
    advantage = written_out(here, 0.9, 1.8, version, attitude == "seeking")[:, None]
    assert len(advantage.unique()) > 2
    log_ratio, mask = here.logp() - here.clean("old_logp"), here.batch.mask
    if version == "paper":
        s = (log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True)).exp()
        loss = -torch.minimum(s * advantage, s.clamp(0.8, 1.2) * advantage).mean()
    else:
        r = log_ratio.exp()
        loss = -torch.minimum(r * advantage, r.clamp(0.8, 1.2) * advantage)[mask].mean()
    found = gradient(make("riskpo", group=4, bundle=3, version=version, attitude=attitude), here, **QUANTILES)
    assert_same(found, autograd(loss, here))


def scores(values: list[float], size: int = 5) -> Case:
    """One bundle for each score, of ``size`` questions."""
    here = case(0, prompts=size, group=len(values), holes=0.0)
    rows = {
        "bundle": torch.arange(len(values)).repeat(size),
        "block": torch.zeros(size * len(values), dtype=torch.long),
        "reward": torch.tensor([[float(q < value) for value in values] for q in range(size)], dtype=torch.float64).flatten(),
    }
    return Case(here.batch.with_rows(**rows), here.policy)


def test_the_hand_made_example():
    batch = scores([0, 1, 2, 3, 4, 5]).batch
    advantage = TailWeighted(1.0, 4.0)(batch)
    assert advantage[:6].tolist() == [-4.5, -3.0, -2.0, -1.0, 0.0, 0.0]
    assert torch.equal(advantage.view(5, 6), advantage[:6].expand(5, 6))  # the same for all members
    assert torch.equal(advantage, TailWeighted(4.0, 1.0)(batch))  # trackers that have crossed


def test_the_shape_in_the_score():
    score = torch.linspace(0, 5, 101, dtype=torch.float64)
    risk = TailWeighted(1.0, 4.0, (1.0, 1.0, 0.0))
    none = tail_value(score, 1.0, 4.0, risk.slopes) - 3.0
    assert torch.allclose(none, -(4.0 - score).clamp(min=0))  # w = 0
    for slopes in ((1.5, 1.0, 0.0), (3.0, 1 / 1.5, 0.0)):
        value = tail_value(score, 1.0, 4.0, slopes)
        assert (value.diff() >= -1e-12).all() and value[score >= 4.0].unique().numel() == 1
    nearly_all = tail_value(score, 0.0, 5.0, (0.0, 1.0, 0.0))  # a → 0, b → 1, m = 0
    assert torch.allclose(nearly_all, score)


def test_shares_of_a_bundle_add_up_to_its_advantage():
    here = case(3, prompts=6)
    shared = TailWeighted(0.9, 1.8, size=3, credit="share")(here.batch)
    whole = TailWeighted(0.9, 1.8, size=3)(here.batch)
    for rows in members(here).values():
        assert float(shared[rows].sum()) == pytest.approx(float(whole[rows[0]]), rel=1e-9)


def test_the_tracker_rests_at_the_empirical_quantile():
    draw = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for level in (0.2, 0.8):
        tracker, state = QuantileTracker(Knob("q", 0.0), "below", level, rate=0.02), SimpleNamespace(knobs={})
        late = []
        for value in draw.tolist():
            state.knobs |= tracker(state, {"below": float(value < state.knobs.get("q", 0.0))})
            late.append(state.knobs["q"])
        assert sum(late[10_000:]) / 10_000 == pytest.approx(float(draw.quantile(level)), abs=0.03)
    assert tracker(state, {}) == {}


@pytest.mark.parametrize("seed", [None, 3])
def test_every_sample_is_in_one_bundle_with_one_of_each_question(seed: int | None):
    batch = case(0, prompts=7, group=4).batch
    bundle, block = bundled(batch, 3, seed)
    assert bundle.unique().numel() == 12 and block.bincount().tolist() == [12, 12, 4]
    for key in bundle.unique():
        prompts = batch["prompt"][bundle == key]
        assert len(prompts) == len(prompts.unique()) and len(block[bundle == key].unique()) == 1
    member = bundle.view(7, 4) % 4
    assert torch.equal(member, torch.arange(4).expand(7, 4)) == (seed is None)
    assert torch.equal(bundle, bundled(batch, 3, seed)[0])


def test_what_is_measured_moves_the_quantiles():
    task = ToyTask()
    recipe = make("riskpo", bundle=2, group=4, rate=0.5)
    state = State(task=task, models={"policy": task.policy()}, knobs={"steps": 1, "prompts": 4, "lr": 0.1, "max_actions": 3})
    build(recipe, state, {})
    seen = {}
    run(recipe, state, after=lambda state, metrics: seen.update(metrics))
    for name, level in (("low", 0.2), ("high", 0.8)):
        assert 0 <= seen[f"bundle/below_{name}"] <= 1
        assert state.knobs[f"quantile_{name}"] == pytest.approx(level * 2 + 0.5 * (level - seen[f"bundle/below_{name}"]))


def test_bad_options():
    with pytest.raises(QuatrainError, match="level"):
        make("riskpo", lower=0.0)
    with pytest.raises(QuatrainError, match="pairing"):
        Bundles(5, "sorted")
    with pytest.raises(QuatrainError, match="slopes"):
        make("riskpo", weight=-2.0)
    with pytest.raises(QuatrainError, match="credit"):
        TailWeighted(0.0, 1.0, credit="all")
