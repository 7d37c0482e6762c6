"""thinkless-degrpo: autograd of the decoupled loss of paper and code, its limits, the table of rewards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.parts.control import after_first, first_action, trajectory_mean
from quatrain.rollout.modes import ModeReward
from quatrain.training.registry import make
from tests.toy import Case, assert_same, autograd, case, gradient


def centred(here: Case) -> Tensor:
    reward = here.batch["reward"].view(-1, 4)
    return (reward - reward.mean(1, keepdim=True)).view(-1, 1)


def token_losses(here: Case) -> Tensor:
    r, advantage = here.ratio(), centred(here)
    return -torch.minimum(r * advantage, r.clamp(0.8, 1.2) * advantage)


def paper(here: Case, alpha: float, version: str, kl: float) -> Tensor:
    losses, mask, n = token_losses(here), here.batch.mask, len(here.batch)
    control, response, responses = torch.zeros(()), [], 0
    for row in range(n):
        places = mask[row].nonzero()[:, 0]
        control = control + losses[row, places[0]]
        response.append(losses[row, places[1:]].sum() / (max(len(places) - 1, 1) if version == "paper" else 1))
        responses += len(places) - 1
    gap = here.clean("reference_logp") - here.logp()
    k3 = torch.where(mask, gap.exp() - gap - 1, 0.0)
    penalty = (k3.sum(1) / mask.sum(1)).mean() if version == "paper" else k3.sum() / mask.sum()
    return alpha * control / n + sum(response) / (n if version == "paper" else responses) + kl * penalty


@pytest.mark.parametrize("version", ["paper", "code"])
@pytest.mark.parametrize("alpha", [1e-3, 0.7])
@pytest.mark.parametrize("kl", [0.0, 0.001, 0.5])
def test_the_gradient(version: str, alpha: float, kl: float):
    for seed in (0, 1):
        here = case(seed)
        assert (here.batch.lengths == 1).any()  # a row that is a control token alone still counts in 1/N
        recipe = make("thinkless-degrpo", group=4, version=version, alpha=alpha, kl=kl)
        assert_same(gradient(recipe, here), autograd(paper(here, alpha, version, kl), here))


def test_the_control_tokens_gradient_does_not_depend_on_the_length():
    for length in (2, 7):
        here = case(3, length=length, stale=0.0, holes=0.0)
        found = gradient(make("thinkless-degrpo", alpha=0.25, kl=0.0), here).view(*here.batch.shape, -1)[:, 0]
        p = here.policy.table.detach().view(*here.batch.shape, -1)[:, 0].softmax(-1)
        score = torch.nn.functional.one_hot(here.batch.actions[:, 0], p.shape[-1]) - p
        assert_same(found, -0.25 * centred(here) * score / len(here.batch))


def whole(length: int) -> Case:
    """Every row has all of its actions."""
    here = case(1, length=length, holes=0.0)
    full = torch.ones_like(here.batch.mask)
    filled = {name: column.nan_to_num(0.0) for name, column in here.batch.columns.items() if column.is_floating_point()}
    columns = {**here.batch.columns, **filled}
    return Case(Batch(full, here.batch.actions, columns, here.batch.rows), here.policy, here.others)


def test_alpha_of_one_over_t_is_grpo_up_to_a_factor():
    here, responses = whole(5), 4
    advantage, r = centred(here), here.ratio()
    grpo = -torch.minimum(r * advantage, r.clamp(0.8, 1.2) * advantage).mean(1).mean()
    found = gradient(make("thinkless-degrpo", alpha=1 / responses, kl=0.0), here)
    assert_same(found, autograd((responses + 1) / responses * grpo, here))


def test_paper_and_code_agree_for_equal_lengths_only():
    both = [[gradient(make("thinkless-degrpo", version=version), here) for version in ("paper", "code")] for here in (whole(5), case(1))]
    assert_same(*both[0], 1e-12)
    assert float((both[1][0] - both[1][1]).abs().max()) > 1e-3


def test_the_selections_share_out_the_actions():
    mask = torch.tensor([[True, False, True, True], [False, True, False, False], [False] * 4])
    batch = Batch(mask, torch.zeros(3, 4))
    first, rest = first_action(batch), after_first(batch)
    assert torch.equal(first | rest, mask) and not (first & rest).any()
    assert first.long().sum(1).tolist() == [1, 1, 0]
    assert trajectory_mean(batch, rest).tolist() == [[0, 0, 0.25, 0.25], [0.0] * 4, [0.0] * 4]  # two rows act


def test_the_table_of_rewards():
    texts = ("<think>a", "b", "<think>c", "d")
    batch = Batch(torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, 1), rows={"reward": torch.tensor([1.0, 1.0, 0.0, 0.0])})
    seen: dict = {}
    state = SimpleNamespace(measure=seen.update)
    assert ModeReward()(state, batch.with_notes(completion=texts))["reward"].tolist() == [0.5, 1.0, -1.0, -1.0]
    assert seen["modes/thought"][0] == 2 and seen["modes/thought"][1] == 4
    assert ModeReward(cost=0.2, wrong=0.0)(state, batch.with_notes(completion=texts))["reward"].tolist() == pytest.approx([0.8, 1, 0, 0])
    assert ModeReward()(state, batch)["reward"].tolist() == [1.0, 1.0, -1.0, -1.0]
    half = batch.with_rows(reward=batch["reward"] / 2)  # correct in part
    assert ModeReward()(state, half.with_notes(completion=texts))["reward"].tolist() == [-0.25, 0.0, -1.0, -1.0]
