"""Trees of rollouts: leaves distributed as independent samples, what is shared sampled once, scores and gradients the leaves' own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quatrain.batch import Batch
from quatrain.models import scorer
from quatrain.models.causal_lm import CausalLM
from quatrain.models.decoding import Decoding, Stops
from quatrain.parts.likelihoods import LogProb
from quatrain.parts.trees import lineage, sampled_once
from quatrain.protocols import Item, Sampling
from quatrain.rollout.branching import Branching
from quatrain.rollout.sources import OnPolicy
from quatrain.rollout.trees import Nodes, Trees
from quatrain.tasks.text import TextTask
from quatrain.training.state import State
from tests.models.test_sampler import exact
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.toy import case


class Counted(Decoding):
    """Counts the tokens that it draws, in the list ``spent``."""

    def advance(self, tokens: int) -> int:
        before = int(self.transcript.table["length"].sum())
        live = super().advance(tokens)
        self.spent.append(int(self.transcript.table["length"].sum()) - before)
        return live


class Little(CausalLM):
    """A model of few tokens; 0 ends, if it ``ends`` at all."""

    def __init__(self, size: int, ends: bool):
        super().__init__(tiny_model(vocabulary=size, hidden=16, layers=1, seed=3), SimpleNamespace(eos_token_id=0, vocab_size=size))
        self.stops, self.spent = Stops((0,) if ends else ()), []

    def _stops_for(self, texts: tuple[str, ...]) -> Stops:
        return self.stops

    def decoding(self, sampling: Sampling) -> Decoding:
        found = Counted(self.backbone, sampling, self.stops)
        found.spent = self.spent
        return found


def grown(policy: CausalLM, plan: Branching, trees: int, group: int, length: int) -> Batch:
    return Trees(plan)(policy).sample([[1, 2, 1]] * trees, group, Sampling(max_actions=length), torch.arange(trees * group) * 7 + 11)


@pytest.mark.parametrize("plan", [Branching(1, 2), Branching(2, 3)], ids=str)
def test_leaves_are_distributed_as_independent_samples(plan: Branching):
    """No path ends early: the k-th leaf of a tree, over many trees, against the enumerated distribution."""
    trees, group, policy = 1500, 5, Little(3, ends=False)
    batch = grown(policy, plan, trees, group, 3)
    assert sum(policy.spent) == int(sampled_once(batch).sum()) < int(batch.mask.sum()) == trees * group * 3
    expected = trees * exact(policy.module, [1, 2, 1], 3, 3)
    index = (batch.actions * torch.tensor([9, 3, 1])).sum(1).view(trees, group)
    few = expected < 5  # pooled
    wanted = torch.cat([expected[~few], expected[few].sum()[None]])
    for k in range(group):
        observed = torch.bincount(index[:, k], minlength=27)
        counted = torch.cat([observed[~few], observed[few].sum()[None]])
        chi_square, freedom = float(((counted - wanted).square() / wanted).sum()), len(wanted) - 1
        assert chi_square < freedom + 4.5 * (2 * freedom) ** 0.5 + 10


@pytest.mark.parametrize("plan", [Branching(1, 2, 3, "likely"), Branching(1, 2, shares="unlikely", temperature=0.5)], ids=str)
def test_where_likelier_paths_branch_more_the_shares_undo_it(plan: Branching):
    trees, group, policy = 1500, 5, Little(3, ends=False)
    batch = grown(policy, plan, trees, group, 3)
    truth = exact(policy.module, [1, 2, 1], 3, 3)
    index = (batch.actions * torch.tensor([9, 3, 1])).sum(1).view(trees, group)
    share = batch["share"].view(trees, group)
    assert torch.allclose(share.sum(1), torch.ones(trees, dtype=torch.float64))
    found = torch.zeros(trees, 27, dtype=torch.float64).scatter_add(1, index, share)
    plain = torch.zeros(trees, 27, dtype=torch.float64).scatter_add(1, index, torch.full_like(share, 1 / group))
    often = truth > 0.01
    distance = [((of.mean(0) - truth) / (of.var(0) / trees).sqrt())[often].abs().max() for of in (found, plain)]
    assert distance[0] < 4 < distance[1]


@pytest.mark.parametrize("plan", [Branching(1, 2), Branching(2, 2, shares="likely"), Branching(1, 2, restart="root")], ids=str)
def test_where_leaves_end_early_their_shares_are_unbiased_and_their_plain_mean_is_not(plan: Branching):
    trees, group, policy = 1200, 6, Little(3, ends=True)
    batch = grown(policy, plan, trees, group, 4)
    alone = policy.sample([[1, 2, 1]], 10_000, Sampling(max_actions=4), torch.arange(10_000) * 13 + 10**6)
    truth, error = alone.lengths.double().mean(), alone.lengths.double().var() / 10_000
    length = batch.lengths.double().view(trees, group)
    weighted, plain = (batch["share"].view(trees, group) * length).sum(1), length.mean(1)
    assert abs(float(weighted.mean() - truth)) < 4 * float((weighted.var() / trees + error).sqrt())
    assert float(plain.mean() - truth) > 5 * float((plain.var() / trees + error).sqrt())  # those that go on branch further


def test_at_the_root_alone_it_is_the_policys_own_sampling():
    policy = Little(5, ends=True)
    prompts, seeds, sampling = [[1, 2], [3, 1, 4]], torch.arange(8) + 40, Sampling(max_actions=6)
    whole = policy.sample(prompts, 4, sampling, seeds)
    for segment in (6, 2):  # it is interrupted, and goes on as it would have
        tree = Trees(Branching(segment, 4))(policy).sample(prompts, 4, sampling, seeds)
        assert torch.equal(tree.actions, whole.actions) and torch.equal(tree.mask, whole.mask)
        for name, value in whole.columns.items():
            torch.testing.assert_close(tree[name], value)
    assert torch.equal(tree["seed"], seeds)
    assert torch.equal(sampled_once(tree), tree.mask) and tree["share"].tolist() == [0.25] * 8


def policy(**options: Any) -> CausalLM:
    tokenizer = tiny_tokenizer()
    return CausalLM(tiny_model(vocabulary=len(tokenizer), scale=3.0, **options), tokenizer)


def leaves(policy: CausalLM, **sampling: Any) -> Batch:
    prompts = [policy.encode(text) for text in ("12+34=", "ab")]
    return Trees(Branching(3, 2, 3))(policy).sample(prompts, 8, Sampling(max_actions=11, **sampling), torch.arange(16) + 5)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7}, {"top_k": 9, "top_p": 0.9}, {"heat": lambda entropy: 1 + 0.1 * entropy}])
def test_a_leafs_log_probabilities_are_those_of_its_sequence_alone(sampling: dict):
    model = policy()
    batch = leaves(model, **sampling)
    for row in range(len(batch)):
        alone = batch.take([row])
        scored = model.score(alone, [LogProb()])[LogProb()]
        assert torch.allclose(scored, alone["behaviour_logp"].float(), atol=2e-5)
    assert not batch["behaviour_logp"][~batch.mask].any() and not (batch["terminated"] & batch["truncated"]).any()
    assert (batch["terminated"] | batch["truncated"]).sum(1).tolist() == [1] * 16 and not batch["truncated"][batch.lengths < 11].any()
    assert sampling or len(lineage(batch)[0]) == 4


@pytest.mark.parametrize("rows", [8, 3])
def test_rows_at_a_time_change_nothing(rows: int):
    model = policy()
    whole = leaves(model)
    model.max_rows = rows
    parts = leaves(model)
    assert torch.equal(parts.actions, whole.actions) and torch.equal(parts["node"], whole["node"])
    one, other = (batch.contexts["policy"] for batch in (parts, whole))
    assert torch.equal(one["tokens"][one["mask"]], other["tokens"][other["mask"]])


def test_equal_nodes_are_equal_beginnings():
    batch = leaves(policy())
    for i in range(16):
        for j in range(i):
            same = (batch["node"][i] == batch["node"][j]) & batch.mask[i] & batch.mask[j]
            assert not same.any() or i // 8 == j // 8
            assert torch.equal(same, same.long().cumprod(0).bool())
            assert torch.equal(batch.actions[i][same], batch.actions[j][same])
            assert torch.equal(batch["behaviour_logp"][i][same], batch["behaviour_logp"][j][same])


def test_shared_beginnings_are_scored_once_and_the_gradient_is_the_same(monkeypatch: pytest.MonkeyPatch):
    model = policy(dtype=torch.float64)
    batch, weight = leaves(model), torch.randn(16, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    hidden_of = scorer.hidden_of
    monkeypatch.setattr(scorer, "hidden_of", lambda backbone, trees: seen.append(trees.ids.numel()) or hidden_of(backbone, trees))
    found = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(scorer, "fits", lambda backbone: False)
        model.module.zero_grad()
        loss = (model.score(batch, [LogProb()])[LogProb()] * weight[:, : batch.shape[1]]).sum()
        loss.backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.module.parameters()]))
    assert len(seen) == 1 and seen[0] < int(batch.mask.sum())
    assert (found[0] - found[1]).abs().max() < 1e-6 * found[1].abs().max()  # norms and positions are in fp32


class Even:
    """One point for completions of an even number of characters."""

    def score(self, completions: list[str], items: list[Item]) -> list[float]:
        return [float(len(text) % 2 == 0) for text in completions]


def test_a_task_judges_leaves_and_the_ledger_is_charged_once():
    task = TextTask("words", [Item(1, "ab"), Item(2, "abcd"), Item(3, "b")], None, Even())
    state = State(task, {"policy": policy()})
    batch = OnPolicy(group=4, prompts=3, temperature=1.0, top_p=1.0, top_k=0, max_actions=9, through=Trees(Branching(2, 2)))(state)
    assert batch["prompt"].tolist() == [1] * 4 + [2] * 4 + [3] * 4 or len(batch["prompt"].unique()) == 3
    assert state.spent["tokens"] == int(sampled_once(batch).sum()) < int(batch.mask.sum())
    assert state.close_round()["tree/sampled"] == pytest.approx(state.spent["tokens"] / int(batch.mask.sum()))
    assert Nodes()(state, batch) is batch
    bare = case(0).batch
    bare = Batch(bare.mask, bare.actions, {}, bare.rows)
    assert torch.equal(sampled_once(Nodes()(SimpleNamespace(), bare)), bare.mask)
