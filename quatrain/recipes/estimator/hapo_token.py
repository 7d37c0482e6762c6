from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.controllers.heat import HEAT, EntropyScale
from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.knobs import Knob
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.natures import Heat, Nature, NatureClip, Redistribution
from quatrain.parts.token_groups import TokenRelative
from quatrain.recipes.basics.dapo import dapo
from quatrain.rollout.sources import DynamicSampling, OnPolicy
from quatrain.training.entropies import ScoreEntropy
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe(
    "hapo-token",
    family="estimator",
    title="From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature",
    paper="2509.16591",
)
def hapo_token(
    group: int = 16,
    version: Literal["paper", "code"] = "paper",
    heat: float = 0.05,
    tokens: bool = True,
    share: float = 1.0,
    widen: float = 1.0,
    level: float = 0.8,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual: float = 10.0,
    tries: int = 4,
    overlong_cache: int = 0,
    epochs: int = 1,
    minibatches: int = 16,
) -> Recipe:
    """HAPO: temperature, advantage, redistribution and clip of every token by its entropy.

    h_t = (log H_t − c)/top above c, /bottom below, in [−1, 1];  c the ``level`` quantile of log H, top and bottom the distances to its ends
    1  T_t = T (1 + τ h_t) while sampling, on the scale of the batch before     2  A_i = (r_i − mean)/std over all *tokens* of the group
    3  A (1 + β h) where h > 0 and r is outside (1 − ε_low/2, 1 + ε_high/2), or h ≤ 0 and r is inside, of the widened ε
    4  ε_low (1 − α h) where h ≤ 0,  ε_high (1 + α h) where h > 0;  dual clip at ``dual``; token mean; DAPO's sampling

    heat, tokens, share, widen   τ, part 2, β, α: 0 (or false) leaves a part out.
    version  ``code``: the released code divides by the negative minimum, so that h ≥ 0 everywhere and half of 3 and 4 never acts.

    → DAPO with a dual clip and a batch mean for all parts off, or h = 0. Inferred: H is that of the policy that sampled, at temperature 1,
    scaled over the actions of one update; c, top and bottom for sampling are those of the whole batch; the first batch has one temperature.
    """
    signed = version == "paper"
    source = OnPolicy(group=group, heat=Heat(heat, signed, *(Knob(name, 0.0) for name in HEAT)) if heat else None)
    plain = dapo(group, clip_low, clip_high, tries, overlong_cache, mean="batch", epochs=epochs, minibatches=minibatches)
    bound = NatureClip(Nature(level, signed), clip_low, clip_high, widen, dual)
    overlong = plain.stages[0].steps[0].edits
    plain = plain.with_collect(source=DynamicSampling(source, tries=tries), edits=(*overlong, ScoreEntropy())).but(
        advantage=TokenRelative() if tokens else GroupRelative(),
        bound=bound,
        weight=Redistribution(bound, share),
    )
    return replace(plain, controllers=(EntropyScale(level),)) if heat else plain


claim(
    "hapo-token",
    "beats",
    "HAPO ends at a higher accuracy than DAPO, and than itself without any one of its four parts.",
    arms={
        "hapo": "hapo-token:group=8,minibatches=4",
        "dapo": "dapo:clip_high=0.2,mean=batch,minibatches=4",
        "heat": "hapo-token:group=8,minibatches=4,heat=0",
        "tokens": "hapo-token:group=8,minibatches=4,tokens=false",
        "redistribution": "hapo-token:group=8,minibatches=4,share=0",
        "clip": "hapo-token:group=8,minibatches=4,widen=0",
    },
    settings=LETTERS | {"task": "letters:chain?levels=2-5"},
    stand_in="a character model of 0.2 million parameters and chains of operations for models of 1.5 billion parameters and more",
    why="Most characters of a chain are certain, so that the smallest entropy stretches the lower half of the scale; five per cent of a "
    "temperature is little. Draws are not charged: arms spend equal updates.",
)
