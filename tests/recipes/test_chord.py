"""chord: autograd of the mixed loss in all variants; φ by hand; the schedule of μ; its two ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.parts.shaping import ByProbability
from quatrain.recipes.hybrid.chord import explore, imitate_then_explore
from quatrain.training.registry import make
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient

GROUP = 4


def shown(seed: int = 0) -> Case:
    return case(seed, prompts=4, group=GROUP, demonstrations=True)


def rows(here: Case, index: slice) -> Case:
    kept = torch.arange(len(here.batch))[index]
    return Case(here.batch.take(kept), here.policy, here.others)


def paper(here: Case, mu: float, phi: str = "one", clip: float = 0.2) -> Tensor:
    """(1 − μ) of the clipped surrogate over the rollouts' tokens, μ of the weighted imitation over the demonstrations'."""
    own, expert = rows(here, slice(0, 4 * GROUP)), rows(here, slice(4 * GROUP, None))
    ratio, advantage = own.ratio(), z_scores(own)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    p = expert.logp().exp().detach()
    weight = {"one": torch.ones_like(p), "phi": p * (1 - p), "importance": p}[phi]
    grpo = -surrogate[own.batch.mask].mean()
    sft = -(weight * expert.logp())[expert.batch.mask].mean()
    return (1 - mu) * grpo + mu * sft


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("variant", "phi"), [("phi", "phi"), ("importance", "importance"), ("fixed", "one")])
def test_the_gradient_of_a_constant_mixture(seed: int, variant: str, phi: str):
    here = shown(seed)
    for mu in (0.1, 0.7):
        recipe = make("chord", variant=variant, mu=mu, group=GROUP)
        assert_same(gradient(recipe, here), autograd(paper(here, mu, phi), here))


@pytest.mark.parametrize("mu", [0.9, 0.475, 0.05])
def test_the_gradient_at_a_place_of_the_schedule(mu: float):
    here = shown(2)
    assert_same(gradient(make("chord", group=GROUP), here, mu=mu), autograd(paper(here, mu), here))


def test_phi_on_two_tokens_by_hand():
    """π = (¼, ¾), the expert's token has ¼: the slope of −φ log p is −φ (1 − ¼, −¾) = (−9/64, 9/64); with φ's own slope it would differ."""
    batch = Batch(
        torch.ones(1, 1, dtype=torch.bool),
        torch.zeros(1, 1, dtype=torch.long),
        columns={"state": torch.zeros(1, 1, dtype=torch.long), "origin": torch.ones(1, 1, dtype=torch.long)},
        rows={"prompt": torch.zeros(1), "reward": torch.full((1,), float("nan"))},
    )
    batch = batch.with_columns(old_logp=torch.full((1, 1), float("nan")))
    here = Case(batch, TabularPolicy(torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()))
    found = gradient(make("chord", variant="phi", mu=1.0), here)
    assert found.flatten().tolist() == pytest.approx([-9 / 64, 9 / 64], abs=1e-15)
    assert gradient(make("chord", variant="phi", mu=0.5), here).flatten().tolist() == pytest.approx([-9 / 128, 9 / 128], abs=1e-15)
    assert gradient(make("chord", variant="importance", mu=1.0), here).flatten().tolist() == pytest.approx([-3 / 16, 3 / 16], abs=1e-15)


def test_phi_is_for_what_is_uncertain():
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)[None]
    batch = Batch(torch.ones_like(p, dtype=torch.bool), torch.zeros_like(p), columns={"current_logp": p.log()})
    phi = ByProbability()(batch)
    assert int(phi.argmax()) == 499 and float(phi.max()) == pytest.approx(0.25) and torch.allclose(phi, phi.flip(1))
    surely = ByProbability()(batch.with_columns(current_logp=torch.full_like(p, -1e-9)))
    assert surely[0, 0].item() == pytest.approx(1e-9, rel=1e-6)  # no cancellation near 1


def test_the_schedule_of_mu():
    (schedule,) = make("chord", peak=0.9, valley=0.05, warmup=20, decay=100).controllers
    places = [schedule.at(step) for step in (0, 10, 20, 70, 120, 500)]
    assert places == pytest.approx([0.0, 0.45, 0.9, 0.475, 0.05, 0.05])
    assert schedule(SimpleNamespace(step=20), {}) == {"mu": schedule.at(20)}
    assert make("chord", warmup=20).knobs()["mu"] == 0.0 and make("chord").knobs()["mu"] == 0.9  # of the first round
    assert not make("chord", variant="phi").controllers and "mu" not in make("chord", variant="phi").knobs()
    assert make("chord", peak=0.0).controllers[0].at(0) == 0.0


def test_its_two_ends():
    here = shown()
    explored, imitated = rows(here, slice(0, 4 * GROUP)), rows(here, slice(4 * GROUP, None))
    for variant in ("fixed", "phi"):
        assert torch.equal(gradient(make("chord", variant=variant, mu=0.0), here), gradient(explore(), explored))
    assert torch.equal(gradient(make("chord", variant="fixed", mu=1.0), here), gradient(make("sft"), imitated))
    assert torch.equal(gradient(make("chord"), here, mu=0.0), gradient(explore(), explored))


def test_imitation_then_exploration_spends_as_many_rounds_on_each():
    recipe = imitate_then_explore()
    assert [stage.rounds for stage in recipe.stages] == [recipe.stages[0].rounds] * 2
