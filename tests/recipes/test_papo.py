"""papo: autograd of the base's loss minus γ k3 to the corrupted branch plus η H; what is corrupted, and how much."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.likelihoods import LogProb
from quatrain.parts.perception import ByOutcome, Perception
from quatrain.rollout.corruption import Corrupt
from quatrain.training.columns import Score
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.recipes.test_grpo import paper as grpo_loss
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, assert_same, autograd, case, gradient


def average(value: Tensor, here: Case, base: str) -> Tensor:
    """GRPO's mean per sequence; DAPO's per group (here of four rows)."""
    mask = here.batch.mask
    value = torch.where(mask, value, 0.0)
    if base == "grpo":
        return (value.sum(1) / mask.sum(1)).mean()
    return (value.sum(1).view(-1, 4).sum(1) / mask.sum(1).view(-1, 4).sum(1)).mean()


def k3(here: Case, name: str = "corrupted_logp") -> Tensor:
    gap = here.clean(name) - here.logp()
    return gap.exp() - gap - 1


def paper(here: Case, base: str, gamma: float, wrong: float, eta: float, kl: float) -> Tensor:
    ratio, advantage = here.ratio(), z_scores(here)
    high = 0.2 if base == "grpo" else 0.28
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1 + high) * advantage)
    weight = (wrong + (1 - wrong) * here.batch["reward"])[:, None]
    perception = weight * k3(here).clamp(max=10)
    loss = surrogate + gamma * perception - kl * k3(here, "reference_logp") + eta * here.logp()
    return -average(loss, here, base)


@pytest.mark.parametrize("base", ["grpo", "dapo"])
@pytest.mark.parametrize(("gamma", "wrong", "eta", "kl"), [(0.02, 1.0, 0.0, 0.01), (0.5, 0.1, 0.05, 0.0), (1.0, 1.0, 0.03, 0.3)])
def test_the_gradient(base: str, gamma: float, wrong: float, eta: float, kl: float):
    for seed in (0, 1):
        here = case(seed)
        recipe = make("papo", group=4, base=base, gamma=gamma, wrong=wrong, entropy=eta, kl=kl)
        assert_same(gradient(recipe, here), autograd(paper(here, base, gamma, wrong, eta, kl), here))
        annealed = make("papo", group=4, base=base, gamma=gamma, wrong=wrong, entropy=eta, kl=kl, anneal=True)
        assert_same(gradient(annealed, here, gamma=gamma / 2), autograd(paper(here, base, gamma / 2, wrong, eta, kl), here))


def test_the_estimate_is_capped():
    """Where k3 is above 10 the code's clamp leaves no gradient."""
    here = case(2)
    far = here.clean("corrupted_logp") + torch.where(torch.arange(5) % 2 == 0, 4.0, 0.0)
    here = replace(here, batch=here.batch.with_columns(corrupted_logp=far))
    capped = (k3(here) > 10) & here.batch.mask
    assert capped.any() and not capped.all()
    recipe = make("papo", gamma=1.0, kl=0.0)
    assert_same(gradient(recipe, here), autograd(paper(here, "grpo", 1.0, 1.0, 0.0, 0.0), here))
    current = here.logp().detach()
    assert not Perception()(here.batch.with_columns(current_logp=current))[capped].any()


@pytest.mark.parametrize("base", ["grpo", "dapo"])
def test_without_a_weight_or_without_damage_it_is_its_base(base: str):
    here = case(1)
    plain = {"grpo": make("grpo", kl=0.0), "dapo": make("dapo")}[base]
    assert torch.equal(gradient(make("papo", base=base, gamma=0.0, kl=0.0), here), gradient(plain, here))
    same = replace(here, batch=here.batch.with_columns(corrupted_logp=here.logp().detach()))
    assert_same(gradient(make("papo", base=base, gamma=0.5, kl=0.0), same), gradient(plain, here), 1e-13)
    if base == "grpo":
        assert_same(gradient(make("papo", gamma=0.0, kl=0.3), here), autograd(grpo_loss(here, kl=0.3), here))


def test_the_direction_of_the_perception_term_by_hand():
    """r = ½: the observation doubles the chance, and A = ½ raises it further; r = 2: A = −1 lowers it; equal: nothing."""
    batch = Batch(torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4)).with_columns(
        current_logp=torch.tensor([[0.5, 0.25, 0.25, 1e-9]]).log(), corrupted_logp=torch.tensor([[0.25, 0.5, 0.25, 0.9]]).log()
    )
    assert Perception()(batch)[0].tolist() == pytest.approx([0.5, -1.0, 0.0, 0.0])
    gap = torch.linspace(-3, 3, 61)
    assert ((gap.exp() - gap - 1) >= 0).all()
    weight = ByOutcome(1.0, 0.1)(batch.with_rows(reward=torch.tensor([1.0])))
    assert weight.tolist() == [1.0] and ByOutcome(1.0, 0.1)(batch.with_rows(reward=torch.tensor([0.0]))).tolist() == pytest.approx([0.1])


def test_on_average_it_leaves_what_would_be_said_blindly():
    """Σ_a π(a) A(a) ∇log π(a) = ∇KL(π_m ‖ π), the corrupted side fixed; and the entropy term's mean Σ_a π(a) ∇log π(a) is 0."""
    logits = torch.tensor([0.3, -0.2, 1.0, 0.1], dtype=torch.float64, requires_grad=True)
    dark, logp = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), torch.log_softmax(logits, 0)
    batch = Batch(torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4))
    advantage = Perception()(batch.with_columns(current_logp=logp.detach()[None], corrupted_logp=dark.log()[None]))[0]
    (ours,) = torch.autograd.grad((logp.detach().exp() * advantage * logp).sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad((dark * (dark.log() - logp)).sum(), logits, retain_graph=True)
    (none,) = torch.autograd.grad((logp.detach().exp() * logp).sum(), logits)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=0) and none.abs().max() < 1e-15


# -- what is corrupted -------------------------------------------------------------------------------------------------
def prompts(n: int = 8, length: int = 400) -> Batch:
    mask = torch.arange(length + 5) < torch.tensor([length - 3 * i for i in range(n)])[:, None]
    tokens = torch.where(mask, 7 + torch.arange(length + 5) % 5, 0)
    batch = Batch(torch.ones(n, 2, dtype=torch.bool), torch.zeros(n, 2, dtype=torch.long), rows={"prompt": torch.arange(n) // 2})
    return batch.with_context("policy", tokens=tokens, mask=mask)


def test_the_rate_and_what_is_left_alone():
    batch, state = prompts(), State(task=None, models={})
    found = Corrupt(0.6, fill=3)(state, batch)
    clean, dark = batch.contexts["policy"], found.contexts["corrupted"]
    inner = clean["mask"] & (torch.arange(405) < clean["mask"].sum(1, keepdim=True) - 1)
    hit = dark["tokens"] != clean["tokens"]
    assert (dark["tokens"][hit] == 3).all() and not hit[~inner].any() and torch.equal(dark["mask"], clean["mask"])
    four = int(inner[::2].sum())  # rows of one prompt are struck alike: four independent ones
    assert abs(float(hit[::2].sum()) - 0.6 * four) < 4 * (four * 0.24) ** 0.5
    assert torch.equal(hit[0] & inner[1], hit[1]) and not torch.equal(hit[0] & inner[2], hit[2])
    assert found.contexts["policy"] is batch.contexts["policy"]
    again = Corrupt(0.6, fill=3)(state, batch)  # the next batch has other damage; the same run has the same
    assert not torch.equal(again.contexts["corrupted"]["tokens"], dark["tokens"])
    repeat = Corrupt(0.6, fill=3)(State(task=None, models={}), batch)
    assert torch.equal(repeat.contexts["corrupted"]["tokens"], dark["tokens"])
    none, every = (Corrupt(rate, fill=3)(state, batch).contexts["corrupted"]["tokens"] for rate in (0.0, 1.0))
    assert torch.equal(none, clean["tokens"]) and (every[inner] == 3).all()


class Letters:
    """A policy of one token per letter (but ``w``, which is two), and nothing more."""

    device = torch.device("cpu")

    def encode_completion(self, text: str) -> list[int]:
        return [*(code for letter in text for code in ([1, 2] if letter == "w" else [ord(letter)])), 0]


def test_where_a_task_says_what_is_observed_the_question_stays_whole():
    """Of seven kinds of token, x and y are observed, and x is nothing: y becomes x at the rate, x stays, all else is untouched."""
    batch = prompts()
    shown = batch.contexts["policy"] | {"tokens": ord("s") + torch.arange(405).expand(8, -1) % 7}  # s t u v w x y
    batch = batch.with_context("policy", **shown)
    state = State(task=SimpleNamespace(observed="xy"), models={"policy": Letters()})
    found = Corrupt(0.6)(state, batch).contexts["corrupted"]["tokens"]
    drawn = shown["mask"] & (shown["tokens"] == ord("y"))
    hit = found != shown["tokens"]
    assert (found[hit] == ord("x")).all() and not hit[~drawn].any() and torch.equal(hit[0] & drawn[1], hit[1])
    count = int(drawn[::2].sum())
    assert abs(float(hit[::2].sum()) - 0.6 * count) < 4 * (count * 0.24) ** 0.5
    assert torch.equal(Corrupt(1.0)(state, batch).contexts["corrupted"]["tokens"][drawn], torch.full((int(drawn.sum()),), ord("x")))
    filled = Corrupt(1.0, fill=9)(state, batch).contexts["corrupted"]["tokens"]
    observed = shown["mask"] & (shown["tokens"] >= ord("x"))
    assert (filled[observed] == 9).all() and torch.equal(filled[~observed], shown["tokens"][~observed])
    with pytest.raises(QuatrainError, match="one token"):
        Corrupt()(State(task=SimpleNamespace(observed="xw"), models={"policy": Letters()}), batch)


def test_observations_are_blanked_and_rates_are_checked():
    seen = torch.ones(4, 3, 50)
    batch = Batch(torch.ones(4, 2, dtype=torch.bool), torch.zeros(4, 2), rows={"prompt": torch.arange(4)})
    dark = Corrupt(0.5)(State(task=None, models={}), batch.with_context("policy", observations=seen)).contexts["corrupted"]["observations"]
    assert 0.4 < float(dark.mean()) < 0.6 and set(dark.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(QuatrainError, match="rate of a corruption"):
        Corrupt(1.5)


def test_the_second_score_reads_the_corrupted_context_without_gradient():
    asked = []

    def score(batch: Batch, statistics: list, role: str = "policy") -> dict:
        asked.append((role, torch.is_grad_enabled()))
        return {LogProb(): torch.zeros(batch.shape)}

    state = State(task=None, models={"policy": SimpleNamespace(score=score)})
    edit = Score("policy", "corrupted_logp", micro_tokens=10**6, role="corrupted")
    assert "corrupted_logp" in edit(state, Corrupt()(state, prompts())) and asked == [("corrupted", False)]
    edit(state, prompts())
    assert asked[-1] == ("policy", False)
