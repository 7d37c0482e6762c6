from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.controllers.resets import ResetBelow
from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.knobs import Knob
from quatrain.parts.aggregations import token_mean
from quatrain.parts.bounds import Clip
from quatrain.parts.denominators import Ratio
from quatrain.parts.discrepancy import Band, Within
from quatrain.parts.proxies import MixtureRatio
from quatrain.recipes.basics.asynchronous import asynchronous
from quatrain.recipes.basics.grpo import grpo
from quatrain.training.averages import Average, window_decay
from quatrain.training.columns import Score
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe
from quatrain.training.selves import Frozen


@recipe(
    "ppo-ewma-async",
    family="estimator",
    title="Missing Old Logits in Asynchronous Agentic RL: Semantic Mismatch and Repair Methods for Off-Policy Correction",
    paper="2605.12070",
)
def ppo_ewma_async(
    group: int = 8,
    proxy: Literal["ewma", "snapshot", "async", "linear", "coupled"] = "ewma",
    band: float = 0.2,
    clip: float = 0.2,
    active: float = 0.9,
    share: float = 0.5,
    refresh: int = 4,
    bits: int = 0,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Decoupled PPO for asynchronous rollouts whose old log-probabilities are lost: a moving average stands for the old policy.

    J = E_t[m(r_d) r_d min(r_s A, clip(r_s, 1±ε) A)],  r_d = π_prox/μ, r_s = π_θ/π_prox, r_d·r_s = π_θ/μ,  m = 1[1/(1+c) < r_d < 1+c],
    θ_prox = Σ_k β^{t−k} θ_k / Σ_k β^{t−k},  β = W/(W+2);  θ_prox ← θ after a round with less than τ of the actions unmasked and unclipped

    proxy   ``ewma``: as above; ``snapshot``: the very weights that sampled, the exact repair; ``async``: the weights at the start of
            the update; ``linear``: α μ + (1−α) π_θ, a clip of π_θ/μ with other bounds; ``coupled``: μ itself, r_d = 1.
    band, clip, active, share   c, ε, τ (0: no reset) and α.
    refresh, bits   the simulated engine's lag, and digits (``recipes.basics.asynchronous``); W = refresh − 1, in rounds.

    With no staleness and an exact engine all are one gradient. Inferred: c; the mean over tokens; that the average is taken once per
    round; that it begins anew when it is reset. Interrupted rollouts, and a process of its own for old weights, belong to an engine.
    """
    plain = grpo(group, kl=0.0, epochs=epochs, minibatches=minibatches)
    plain = plain.but(denominator=Ratio("current", "behaviour"), bound=Clip(clip, clip), aggregation=token_mean)
    if proxy == "coupled":
        return asynchronous(plain, refresh, bits)
    name = "old" if proxy == "snapshot" else "proxy"
    stale, apart = Ratio("current", name), Ratio(name, "behaviour")
    if proxy == "linear":
        stale, apart = MixtureRatio("current", share=share), MixtureRatio("behaviour", share=share)  # 1/r_d: in the band if r_d is
    plain = plain.but(bound=Within(Clip(clip, clip, on=stale), (Band(apart, 1 / (1 + band), 1 + band),)))
    if proxy in ("ewma", "async"):
        plain = plain.with_collect(edits=(Score("proxy" if proxy == "ewma" else "policy", name="proxy_logp"),))
    plain = asynchronous(plain, refresh, bits)
    if proxy != "ewma":
        return plain
    first, *rest = plain.stages
    kept = Average("policy", "proxy", window_decay(refresh - 1), Knob("proxy_reset", 0.0))
    averaged = replace(plain, stages=(replace(first, steps=(kept, *first.steps)), *rest)).with_models(proxy=Frozen())
    return replace(averaged, controllers=(ResetBelow("proxy_reset", active),)) if active else averaged


LATE = "refresh=8,bits=6"
claim(
    "ppo-ewma-async",
    "beats",
    "With an engine that rounds and lags eight rounds, the averaged proxy ends higher than one ratio, and than the linear proxy.",
    arms={"ewma": f"ppo-ewma-async:{LATE}"} | {proxy: f"ppo-ewma-async:proxy={proxy},{LATE}" for proxy in ("coupled", "linear")},
    settings=LETTERS,
    stand_in="a character model with weights of 6 binary digits, published every 8 rounds, for an asynchronous pipeline of agents",
    why="The policy of 200 small updates moves little in eight of them, so that ratios seldom reach the clip. That the average comes "
    "near the exact snapshot is not tested here.",
)
