"""copo: autograd of the blended losses, prompt by prompt; the entropy of answers by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.aggregations import sequence_mean
from quatrain.parts.bounds import Clip
from quatrain.parts.consistency import ConsistencyAdvantage, EntropyGate, answer_entropy
from quatrain.rollout.edits import AnswerKeys
from quatrain.training.registry import make
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, assert_same, autograd, case, gradient

GROUP = 4


def entropies(here: Case, group: int = GROUP) -> list[float]:
    found = []
    for start in range(0, len(here.batch), group):
        counts = Counter(here.batch["answer"][start : start + group].tolist()).values()
        found.append(-sum(c / group * math.log2(c / group) for c in counts))
    return found


def dual_clipped(ratio: torch.Tensor, advantage: torch.Tensor, dual: float) -> torch.Tensor:
    """Ye et al. 2020, eq. 5: below by dual·A where A < 0."""
    plain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return torch.where(advantage < 0, torch.maximum(plain, dual * advantage), plain)


def paper(here: Case, k: float = 20.0, b: float = 0.5, hard=False, unless="never", penalty=True, dual: float = 3.0) -> torch.Tensor:
    ratio, mask, reward, local = here.ratio(), here.batch.mask, here.batch["reward"], z_scores(here)[:, 0]
    h = entropies(here)
    means = reward.view(-1, GROUP).mean(1)
    penalties = 1 - (1 - 1 / GROUP) / math.log2(GROUP) * torch.tensor(h, dtype=torch.float64)
    quality = means * penalties if penalty else means
    across = (quality - quality.mean()) / (quality.std() + 1e-6)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(reward)):
        q = i // GROUP
        w = float(h[q] > b) if hard else 1 / (1 + math.exp(-k * (h[q] - b)))
        if (unless == "no_signal" and abs(float(local[i])) < 1e-9) or (unless == "unsolved" and reward[i] == 0):
            w = 0.0
        for share, advantage in ((w, local[i]), (1 - w, across[q])):
            surrogate = dual_clipped(ratio[i], advantage, dual)
            total = total - share * torch.where(mask[i], surrogate, 0.0).sum() / mask[i].sum() / len(reward)
    return total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steepness": 5.0, "offset": 1.0},
        {"gate": "hard"},
        {"unless": "no_signal", "steepness": 2.0},
        {"unless": "unsolved", "steepness": 2.0},
        {"penalty": False, "steepness": 2.0},
        {"dual": 1.3, "steepness": 2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, options: dict):
    here = case(seed, prompts=8, stale=1.0)
    names = {"steepness": "k", "offset": "b"}
    plain = {names.get(name, name): value for name, value in options.items() if name != "gate"}
    loss = paper(here, hard=options.get("gate") == "hard", **plain)
    assert_same(gradient(make("copo", group=GROUP, **options), here), autograd(loss, here))


def test_with_a_kl_penalty():
    here = case(3)
    gap, mask = here.clean("reference_logp") - here.logp(), here.batch.mask.double()
    penalty = (((gap.exp() - gap - 1) * mask).sum(1) / mask.sum(1)).mean()
    assert_same(gradient(make("copo", kl=0.1), here), autograd(paper(here) + 0.1 * penalty, here))


def test_with_a_very_low_offset_it_is_grpo_with_dual_clip():
    here = case(2)
    grpo = make("grpo", kl=0.0).but(bound=Clip(0.2, 0.2, dual=3.0))
    assert_same(gradient(make("copo", offset=-1e3), here), gradient(grpo, here), 1e-13)


def test_a_steep_gate_is_the_hard_one():
    here = case(4)
    assert_same(gradient(make("copo", steepness=1e6), here), gradient(make("copo", gate="hard"), here), 1e-13)


def answers(*groups: list[int], reward: list[float]) -> Batch:
    n = sum(map(len, groups))
    return Batch(
        mask=torch.ones(n, 1, dtype=torch.bool),
        actions=torch.zeros(n, 1),
        rows={
            "answer": torch.tensor([a for group in groups for a in group]),
            "prompt": torch.tensor([q for q, group in enumerate(groups) for _ in group]),
            "reward": torch.tensor(reward, dtype=torch.float64),
        },
    )


def test_hand_numbers():
    batch = answers([7, 7, 7, 7], [1, 2, 3, 4], [5, 5, 6, 6], reward=[1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    assert answer_entropy(batch).tolist() == [0.0] * 4 + [2.0] * 4 + [1.0] * 4
    gate = EntropyGate(20.0, 0.5)(batch)
    assert gate[0].item() == pytest.approx(1 / (1 + math.exp(10))) and gate[4].item() == pytest.approx(1 / (1 + math.exp(-30)))
    # R = 1, 1·(1 − λ·2) = 1/G = 1/4, 0: mean 5/12
    centred = torch.tensor([7 / 12, -2 / 12, -5 / 12], dtype=torch.float64)
    expected = centred / (centred.square().sum() / 2).sqrt()
    assert torch.allclose(ConsistencyAdvantage(eps=0.0)(batch)[::4], expected, rtol=1e-12)


def test_groups_that_agree_are_alive_unless_they_are_average():
    """Identical answers: H = 0, no local signal; a gradient if and only if R_q is not the mean over the prompts."""
    here = case(5, prompts=3)
    for rewards, alive in (((0.0, 0.0, 0.0), (False,) * 3), ((1.0, 0.0, 0.5), (True, True, False))):
        reward = torch.tensor(rewards, dtype=torch.float64).repeat_interleave(GROUP)
        same = Case(here.batch.with_rows(reward=reward, answer=torch.arange(3).repeat_interleave(GROUP)), here.policy)
        moved = gradient(make("copo").but("policy", bound=Clip(9, 9)).but("across", bound=Clip(9, 9)), same)
        assert tuple((moved.abs().sum(1).view(3, -1).sum(1) > 1e-12).tolist()) == alive
        grpo = gradient(make("grpo", kl=0.0).but(aggregation=sequence_mean), same)
        assert grpo.abs().max() < 1e-12


def test_keys_of_answers():
    batch = answers([0, 0, 0, 0], reward=[0, 0, 0, 0])
    texts = AnswerKeys()(None, batch.with_notes(completion=["2>9>8", "so it is 8.", "AB c", "ab  c"]))["answer"].tolist()
    assert texts[0] == texts[1] != texts[2] == texts[3]
    actions = torch.tensor([[1, 2], [1, 2], [1, 3], [1, 2]])
    mask = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
    keys = AnswerKeys()(None, Batch(mask=mask, actions=actions))["answer"].tolist()
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_bad_options():
    with pytest.raises(QuatrainError, match="unknown exception"):
        EntropyGate(unless="always")
