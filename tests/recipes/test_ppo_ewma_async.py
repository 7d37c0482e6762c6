"""ppo-ewma-async: autograd of the decoupled surrogate for every proxy; when they are one; the average and its resets in a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quatrain.parts.aggregations import token_mean
from quatrain.parts.bounds import Clip
from quatrain.parts.denominators import Ratio
from quatrain.parts.discrepancy import Within
from quatrain.parts.proxies import MixtureRatio, shifted_bound
from quatrain.training.averages import Average
from quatrain.training.driver import build, run
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, TabularPolicy, ToyTask, assert_same, autograd, case, gradient

PROXIES = ("ewma", "snapshot", "async", "linear", "coupled")
COLUMN = {"ewma": "proxy_logp", "async": "proxy_logp", "snapshot": "old_logp", "coupled": "behaviour_logp"}


def proxy_of(here: Case, proxy: str, share: float) -> Tensor:
    """[N, T] log π_prox, without gradient."""
    if proxy != "linear":
        return here.clean(COLUMN[proxy])
    return (share * here.clean("behaviour_logp").exp() + (1 - share) * here.logp().detach().exp()).log()


def paper(here: Case, proxy: str, band: float = 0.2, clip: float = 0.2, share: float = 0.5) -> Tensor:
    mask, a, middle = here.batch.mask, z_scores(here), proxy_of(here, proxy, share)
    apart, stale = (middle - here.clean("behaviour_logp")).exp(), (here.logp() - middle).exp()
    kept = (apart > 1 / (1 + band)) & (apart < 1 + band)
    surrogate = apart * torch.minimum(stale * a, stale.clamp(1 - clip, 1 + clip) * a)
    return -torch.where(mask & kept, surrogate, 0.0).sum() / mask.sum()


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize(("band", "clip"), [(0.2, 0.2), (1.0, 0.4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(proxy: str, band: float, clip: float, seed: int):
    here = case(seed, prompts=8)
    found = gradient(make("ppo-ewma-async", group=4, proxy=proxy, band=band, clip=clip, share=0.3), here)
    assert_same(found, autograd(paper(here, proxy, band, clip, 0.3), here))


def test_the_decoupled_clip_reads_the_proxy_ratio_and_equals_the_coupled_one_when_proxy_is_behaviour():
    here = case(2)
    coupled = gradient(make("ppo-ewma-async", proxy="coupled"), here)
    same = replace(here, batch=here.batch.with_columns(proxy_logp=here.batch["behaviour_logp"]))
    assert torch.equal(gradient(make("ppo-ewma-async"), same), coupled)
    current = here.batch.with_columns(current_logp=here.logp().detach())
    bound = next(make("ppo-ewma-async").fits())[1].loss.terms["policy"].bound
    assert isinstance(bound, Within) and bound.bound.on == Ratio("current", "proxy")
    # Clipped by θ/proxy and not by θ/behaviour: moving the proxy to θ unclips everything, whatever the behaviour is.
    total = Ratio("current", "behaviour")(current)
    up = torch.ones(here.batch.shape)
    near = current.with_columns(proxy_logp=current["current_logp"])
    factor, whole = bound.bound(total, up, near), total.exp()
    assert torch.equal(factor[here.batch.mask], whole[here.batch.mask]) and (whole[here.batch.mask] > 1.2).any()
    assert (Clip(0.2, 0.2)(total, up, near) == 0)[here.batch.mask].any()


@pytest.mark.parametrize("proxy", ["proxy", "old", "reference"])
def test_discrepancy_times_staleness_is_the_whole_ratio_for_any_proxy(proxy: str):
    here = case(3)
    batch = here.batch.with_columns(current_logp=here.logp().detach())
    product = Ratio("current", proxy)(batch) + Ratio(proxy, "behaviour")(batch)
    assert torch.allclose(product, Ratio("current", "behaviour")(batch), atol=1e-12)


@pytest.mark.parametrize("proxy", PROXIES)
def test_without_staleness_and_with_an_exact_engine_all_are_one_gradient(proxy: str):
    here = case(4)
    now = torch.where(here.batch.mask, here.logp().detach(), float("nan"))
    here = replace(here, batch=here.batch.with_columns(**dict.fromkeys(("old_logp", "behaviour_logp", "proxy_logp"), now)))
    expected = gradient(make("grpo", kl=0.0).but(aggregation=token_mean), here)
    assert_same(gradient(make("ppo-ewma-async", proxy=proxy), here), expected, 1e-12)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.5)])
def test_a_clip_to_the_linear_proxy_is_a_clip_of_one_ratio_with_other_bounds(share: float, low: float, high: float):
    here = case(5, prompts=40)
    batch, total = here.batch.with_columns(current_logp=here.logp().detach()), Ratio("current", "behaviour")
    watched = Clip(low, high, on=MixtureRatio(share=share))
    # An upper bound is infinite where the ratio to the mixture, at most 1/(1−α), never gets there.
    other = Clip(-shifted_bound(-low, share), shifted_bound(high, share))
    for sign in (1.0, -1.0):
        advantage = torch.full(batch.shape, sign, dtype=torch.float64)
        found = watched(total(batch), advantage, batch)
        assert torch.equal(found, other(total(batch), advantage, batch))
        assert (found[here.batch.mask] == 0).any() or (sign > 0 and other.high == float("inf"))


def test_a_mixture_by_hand():
    """π = ½, μ = ¼, α = ½: the mixture is 3/8, the ratio to it 4/3."""
    here = Case(case(0).batch, TabularPolicy(torch.zeros(1, 2)))
    batch = here.batch.with_columns(
        current_logp=torch.full(here.batch.shape, 0.5, dtype=torch.float64).log(),
        behaviour_logp=torch.full(here.batch.shape, 0.25, dtype=torch.float64).log(),
    )
    found = MixtureRatio(share=0.5)(batch)
    assert torch.allclose(found[batch.mask].exp(), torch.tensor(4 / 3, dtype=torch.float64)) and not found[~batch.mask].any()


# -- runs --------------------------------------------------------------------------------------------------------------
def played(steps: int = 6, **options) -> tuple[list[Tensor], list[Tensor], list[dict], State]:
    """The policy's and the proxy's table as each round used them, and each round's metrics."""
    task, recipe = ToyTask(length=3), make("ppo-ewma-async", **options)
    state = State(task=task, models={"policy": task.policy()}, knobs={"steps": steps, "prompts": 8, "lr": 0.1, "max_actions": 3})
    build(recipe, state, {})
    for model in state.models.values():
        model.module.requires_grad_(True)
    weights, proxies, seen = [state.models["policy"].table.detach().clone()], [], []

    def after(state: State, metrics: dict) -> None:
        proxies.append(state.models["proxy"].table.detach().clone())
        weights.append(state.models["policy"].table.detach().clone())
        seen.append({**metrics, "reset": state.knobs.get("proxy_reset", 0.0)})

    run(recipe, state, after=after)
    return weights, proxies, seen, state


def test_the_proxy_of_a_run_is_the_average_of_the_policies_so_far():
    weights, proxies, _, _ = played(refresh=4, active=0)
    beta = 3 / 5
    for t, found in enumerate(proxies):
        share = torch.tensor([beta ** (t - k) for k in range(t + 1)], dtype=torch.float64)
        assert torch.allclose(found, torch.einsum("k,ksv->sv", share / share.sum(), torch.stack(weights[: t + 1])), atol=1e-12)


def test_never_late_the_proxy_is_the_policy():
    weights, proxies, _, _ = played(refresh=1)
    assert all(torch.equal(old, new) for old, new in zip(proxies, weights[:-1], strict=True))


def test_it_resets_exactly_after_a_round_with_too_few_active_actions():
    weights, proxies, seen, state = played(refresh=6, band=0.02, steps=8)
    shares = [1 - metrics["clipped"] for metrics in seen]
    assert [metrics["reset"] for metrics in seen] == [float(share < 0.9) for share in shares]
    resets = [t + 1 for t, metrics in enumerate(seen[:-1]) if metrics["reset"]]
    assert resets and len(resets) < 7 and state.steered == {"proxy_reset"}
    for t in range(1, len(proxies)):
        assert torch.equal(proxies[t], weights[t]) == (t in resets)


def test_the_average_of_constant_weights_is_those_weights():
    policy = TabularPolicy(torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    state = State(task=ToyTask(), models={"policy": policy, "proxy": TabularPolicy(torch.zeros(3, 2, dtype=torch.float64))})
    for _ in range(5):
        Average("policy", "proxy", 0.7)(state)
        assert torch.allclose(state.models["proxy"].table, policy.table, atol=1e-15)
    assert state.spent["proxy/averaged"] == 5
