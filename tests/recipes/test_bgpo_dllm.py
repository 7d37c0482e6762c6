"""bgpo-dllm: autograd of the paper's bound through a masked-diffusion model; draws accumulated one by one; memory that does not grow.

The bound itself (below the exact objective, tight where θ = θ_old) is tested by numbers in ``tests/parts/test_boundary.py``, the weights
of the evidence bound by enumeration in ``tests/models/test_mask_draws.py``.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective
from quatrain.experiments.miniatures.bound_gradients import cosines, gradient, similarity
from quatrain.knobs import resolve
from quatrain.models.masked_diffusion import MaskedDiffusionLM
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.denominators import Ratio
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from quatrain.training.driver import build, run
from quatrain.training.mask_draws import MaskDraws
from quatrain.training.registry import make
from quatrain.training.state import State
from quatrain.training.steps import Collect, Fit
from tests.tiny_diffusion import diffusion
from tests.toy import assert_same, autograd, case
from tests.toy import gradient as toy_gradient

ODD = SimpleNamespace(score=lambda completions, items: [float(len(text) % 2) for text in completions])


def moved(policy: MaskedDiffusionLM, size: float = 0.02, seed: int = 0) -> MaskedDiffusionLM:
    """The policy after some updates: its weights are changed in place."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter += size * parameter.std() * torch.randn(parameter.shape, generator=g, dtype=parameter.dtype)
    return policy


def off_policy(draws: int, **options: Any) -> tuple[MaskedDiffusionLM, Batch, Fit]:
    """(the policy after some updates, a batch with the draws of the policy before them, the recipe's Fit)."""
    policy = diffusion(dtype=torch.float64, scale=3.0)
    prompts = [policy.encode(text) for text in ("1+2=", "34-5=", "7*8+1=")]
    batch = policy.sample(prompts, 4, Sampling(max_actions=6), torch.arange(12))
    batch = batch.with_rows(reward=torch.tensor([1.0, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1]), prompt=torch.arange(3).repeat_interleave(4))
    recipe = make("bgpo-dllm", draws=draws, **options)
    collect, fit = (resolve(step, {}) for step in recipe.stages[0].steps)
    state = State(None, {"policy": policy}, 0)
    (edit,) = collect.edits
    batch = edit(state, batch)
    return moved(policy), batch, fit


def paper(policy: MaskedDiffusionLM, batch: Batch, draws: int, bound: str) -> Tensor:
    """Minus the objective, every draw held at once: l [12, n]."""
    logp = policy.score(batch, [LogProb()])[LogProb()]
    advantage = GroupRelative()(batch.take(range(0, len(batch), draws)))[:, None]
    if bound == "token":
        d = (logp - batch["old_logp"]).view(12, draws, -1)
        a = advantage[..., None].expand_as(d)
        ratio = torch.where(a > 0, 1 + d, d.exp())
        surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        surrogate = torch.where((a > 0) & (d <= -1), 0.0, torch.where(a < 0, torch.maximum(surrogate, 3 * a), surrogate))
        mask = batch.mask.view(12, draws, -1)
        return -torch.where(mask, surrogate, 0.0).sum() / mask.sum()
    d = (logp - batch["old_logp"]).sum(1).view(12, draws)
    if bound == "joint":
        return -(advantage[:, 0] * d.mean(1).exp()).mean()
    return -torch.where(advantage[:, 0] >= 0, advantage[:, 0] * (1 + d.mean(1)), advantage[:, 0] * d.exp().mean(1)).mean()


@pytest.mark.parametrize("bound", ["boundary", "joint", "token"])
def test_accumulated_over_draws_it_is_the_gradient_of_the_paper(bound: str):
    policy, batch, fit = off_policy(3, bound=bound)
    parameters = list(policy.module.parameters())
    loss = paper(policy, batch, 3, bound)
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])
    assert_same(gradient(fit, policy, batch), expected, 1e-8)
    one_by_one = SimpleNamespace(gradient_parts=lambda *rest: Fit(fit.loss, micro_tokens=1).gradient_parts(*rest), loss=fit.loss)
    assert_same(gradient(one_by_one, policy, batch), expected, 1e-8)  # one draw of one trajectory at a time


def test_where_nothing_has_moved_every_bound_is_the_same():
    found = {}
    for bound in ("boundary", "joint"):
        _, batch, fit = off_policy(3, bound=bound)
        found[bound] = gradient(fit, diffusion(dtype=torch.float64, scale=3.0), batch)
    assert_same(found["boundary"], found["joint"], 1e-9)


def test_for_an_exact_likelihood_there_is_nothing_to_draw():
    """One row per trajectory; REINFORCE where A ≥ 0, the sequence's ratio where A < 0."""
    here = case(1)
    ratio = (here.logp() - here.clean("old_logp")).sum(1)
    advantage = GroupRelative()(here.batch)
    loss = -torch.where(advantage >= 0, advantage * (1 + ratio), advantage * ratio.exp()).mean()
    assert_same(toy_gradient(make("bgpo-dllm", group=4), here), autograd(loss, here))
    kept = MaskDraws(5)(State(None, {"policy": here.policy}), here.batch)
    assert len(kept) == len(here.batch) and kept["trajectory"].tolist() == list(range(len(here.batch)))


def peak(policy: MaskedDiffusionLM, batch: Batch, fit: Fit) -> int:
    """Bytes that autograd holds at most between a forward and its backward, over the micro-batches of an update."""
    held: list[int] = []
    parts = fit.loss.loss

    def watched(*rest: Any) -> Any:
        total = 0

        def keep(value: Tensor) -> Tensor:
            nonlocal total
            total += value.numel() * value.element_size()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            found = parts(*rest)
        held.append(total)
        return found

    object.__setattr__(fit.loss, "loss", watched)
    gradient(fit, policy, batch)
    return max(held)


@pytest.mark.parametrize("bound", ["boundary", "joint"])
def test_memory_does_not_grow_with_the_number_of_draws(bound: str):
    found = {}
    for draws in (8, 32):
        for tokens in (200, 1 << 40):  # with no limit, all draws are held at once
            policy, batch, fit = off_policy(draws, bound=bound)
            found[draws, tokens] = peak(policy, batch, Fit(Objective(dict(fit.loss.terms)), micro_tokens=tokens))
    assert found[32, 200] <= 1.1 * found[8, 200]
    assert found[32, 1 << 40] > 3.5 * found[8, 1 << 40] > 3.5 * found[8, 200]


def task() -> Any:
    from quatrain.tasks.letters import Problems
    from quatrain.tasks.text import TextTask

    items = Problems("train", kinds=("reverse",), levels=(1, 2), size=64)
    return TextTask("reverse", items, items, ODD)


def trained(name: str, rounds: int = 2, kept: dict | None = None, seen: list | None = None, **options: Any) -> State:
    policy = diffusion(canvas=8, block=4)
    recipe = make(name, **options)
    wanted = {"steps": rounds, "prompts": 3, "lr": 1e-3, "max_actions": 8}
    knobs = {**recipe.knobs(), **{name: value for name, value in wanted.items() if name in recipe.knobs()}}
    state = State(task(), {"policy": policy}, 0, knobs=knobs)
    build(recipe, state, {})
    if kept is not None:
        state.load_state_dict(kept)
    return run(
        recipe,
        state,
        after=lambda state, metrics: seen.append((copy.deepcopy(state.state_dict()), dict(metrics))) if seen is not None else None,
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [("bgpo-dllm", {"group": 4, "draws": 3, "minibatches": 2}), ("grpo", {"group": 4}), ("sft", {}), ("dpo", {})],
)
def test_it_runs_and_resumes_bit_for_bit(name: str, options: dict):
    seen: list = []
    whole = trained(name, seen=seen, **options)
    first, metrics = seen[0]
    if name == "grpo":  # one update per batch: under the same draws nothing has moved
        assert abs(metrics["ratio"] - 1) < 1e-5
    again = trained(name, kept=first, **options)
    for one, other in zip(whole.models["policy"].module.parameters(), again.models["policy"].module.parameters(), strict=True):
        assert torch.equal(one, other)
    untouched = diffusion(canvas=8, block=4)
    assert any(
        not torch.equal(one, other)
        for one, other in zip(whole.models["policy"].module.parameters(), untouched.module.parameters(), strict=True)
    )


def test_draws_are_rows_with_the_advantage_of_their_trajectory():
    _, batch, fit = off_policy(3)
    prepared = fit.loss.prepare(batch)["policy/advantage"]
    assert len(batch) == 36 and torch.equal(prepared[::3], prepared[1::3]) and torch.equal(prepared[::3], prepared[2::3])
    assert len(batch.take(range(3))["hidden"].unique(dim=0)) == 3
    assert fit.loss.terms["policy"].denominator == Ratio("current", "old", "sequence", "sum")


def test_an_evidence_bound_is_learnt_by_unchanged_fine_tuning():
    """The negative bound of demonstrations falls, by hand and by the recipe's own mean."""
    state = State(task(), {"policy": diffusion(canvas=8, block=4)}, 0, knobs={"prompts": 16, "lr": 5e-3, "steps": 8})
    recipe = make("sft")
    policy = state.models["policy"]
    shown = policy.redraw(state.task.demonstrations(policy, state.task.starts("train", 0, 16)), 8, seed=1)
    before = float(policy.score(shown, [LogProb()])[LogProb()].detach().sum())
    run(recipe, state)
    assert float(policy.score(shown, [LogProb()])[LogProb()].detach().sum()) > before + 100


def test_the_cosine_to_many_draws_grows():
    found = cosines(0, task=task(), prompts=3, repeats=2, reference=48, updates=1, policy=diffusion(canvas=8, block=4, scale=3.0))
    assert set(found) == {"correlation", *[f"{bound} {n}" for bound in ("boundary", "joint") for n in (1, 2, 4, 8, 16)]}
    assert all(-1 <= value <= 1 for value in found.values()) and found["boundary 16"] > found["boundary 1"]
    assert similarity(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])) == 1.0


def test_the_recipe():
    recipe = make("bgpo-dllm")
    (collect,) = (step for step in recipe.stages[0].steps if isinstance(step, Collect))
    assert collect.edits == (MaskDraws(8),) and MaskDraws(8).provides == ("trajectory", "old_logp", "behaviour_logp")
    with pytest.raises(Exception, match="one draw or more"):
        make("bgpo-dllm", draws=0)
