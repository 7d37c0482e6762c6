from __future__ import annotations

from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.experiments.miniatures.pair_gradients import cosines
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.sides import PerSide, Powered, pair_mean
from quatrain.recipes.basics.grpo import grpo, with_kl
from quatrain.rollout.sides import BothSides, Sides
from quatrain.rollout.sources import OnPolicy
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("pairuni", family="estimator", title="PairUni: Pairwise Training for Unified Multimodal Language Models", paper="2510.25682")
def pairuni(
    group: int = 8,
    pairs: Literal["related", "aligned", "retrieved", "random"] = "related",
    power: float = 0.5,
    clip: float = 0.2,
    kl: float = 0.0,
    epochs: int = 1,
) -> Recipe:
    """Pair-GRPO: an understanding and a generation item about one image, or about similar ones, in the same update.

    J = E_p [Σ_side 1/G Σ_i 1/|o_i| Σ_t min(r_t √s A_i, clip(r_t, 1±ε) √s A_i)],   A_i = (R_i − mean R)/(std R + 1e-6),
    mean and std over the G samples of one side of one pair p; s_p its similarity: 1 for aligned pairs, a cosine for retrieved ones

    pairs  ``aligned``: both sides are of one instance; ``retrieved``: the nearest understanding item of a generation item, by the cosine
           of image features, from 0.6 on; ``related``: of both kinds; ``random``: any two, with s = 1.
    power  of s: 0 leaves all pairs alike.    group  G, per side (4 to 8 in the paper).    kl  the paper has none.

    Half as many pairs as ``prompts`` are drawn. There is one update per pass, so that no update has half of a pair. A task without
    pairs is learnt from item by item. Inferred: ε, the mean per answer (GRPO's), that sides are summed and not averaged.
    → GRPO on pairs for power = 0 or s = 1, with twice its gradient, as two sides are summed; → GRPO without pairs.
    """
    plain = grpo(group, clip, kl=0.0, epochs=epochs)
    plain = plain.but(advantage=PerSide(GroupRelative()), aggregation=pair_mean, weight=Powered("similarity", power))
    plain = plain.with_collect(source=BothSides(OnPolicy(group=group), pairs), edits=(Sides(),))
    return with_kl(plain, kl) if kl else plain


STAND_IN = (
    "a causal model of 0.2 million parameters over characters and 16 image tokens for unified models of billions; scenes of one to "
    "three shapes, exact questions and captions; the cosine of the shapes' attributes for that of image features"
)
claim(
    "pairuni",
    "beats",
    "After as many updates on as many samples PairUni has a higher joint accuracy (mean of understanding and generation) than learning to "
    "understand alone, to generate alone, and than pairs at random.",
    arms={
        "pairuni": "pairuni",
        "understanding": "grpo:kl=0,task=shapes:understanding",
        "generation": "grpo:kl=0,task=shapes:generation",
        "random": "pairuni:pairs=random",
    },
    settings={"task": "shapes", "model": "tiny:shapes", "steps": 100, "prompts": 16, "eval_count": 512, "eval_every": 50},
    metric="joint",
    stand_in=STAND_IN,
    why="All pairs come from one small world, so that items at random share most of their attributes as well. In "
    "a hundred updates no arm gains more than 0.02 on both sides together; drawing alone gains most.",
)
claim(
    "pairuni.agreement",
    "beats",
    "The gradients of understanding and generation agree more (cosine on the shared weights) for aligned pairs than for pairs at random.",
    arms=(
        "aligned",
        "random",
    ),
    measure=cosines,
    settings={"pairs": 32, "group": 32},
    smoke={"pairs": 3, "group": 4},
    stand_in=STAND_IN + "; the gradients of single pairs of 32 samples per side, at the weights that training begins from",
    why="One pair's gradient is mostly noise of sampling, and of its own answer's tokens: cosines are small for either kind.",
)
