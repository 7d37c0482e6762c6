from __future__ import annotations

from typing import Literal

from quatrain.experiments.claims import claim
from quatrain.experiments.miniatures.tree_savings import savings
from quatrain.parts.advantages import Centred, GroupRelative
from quatrain.parts.trees import SubtreeRelative
from quatrain.recipes.basics.dapo import dapo
from quatrain.rollout.branching import Branching
from quatrain.rollout.sources import DynamicSampling, OnPolicy
from quatrain.rollout.trees import Nodes, Trees
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe
from quatrain.training.steps import Collect


@recipe(
    "treepo",
    family="rollout",
    title="TreePO: Bridging the Gap of Policy Optimization and Efficacy and Inference Efficiency with Heuristic Tree-based Modeling",
    paper="2508.17445",
)
def treepo(
    group: int = 16,
    segment: int = 8,
    children: int = 2,
    first: int = 8,
    shares: Literal["even", "likely", "unlikely"] = "even",
    restart: Literal["boundary", "root"] = "boundary",
    levels: Literal["average", "size", "root"] = "average",
    drop: bool = False,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    tries: int = 4,
    overlong_cache: int = 0,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """TreePO: a prompt's group grows as a tree, segment by segment, and each leaf is compared with the leaves of every node above it.

    A_i = whitened over the batch: mean over levels k of (R_i − mean of the leaves below i's node at level k); loss as DAPO, without KL

    group, segment  w leaves per prompt; actions between two branchings (the paper: 16 and 512, up to 14 deep).
    children, first, shares, restart  of ``Branching``: N per path; at most so many, at random, of the root; who gets more of the budget;
                    where leaves still wanted begin when all others have ended.
    levels          ``average`` (the paper), by ``size`` of the node, or the ``root`` alone: GRPO's baseline. drop: of ``SubtreeRelative``.
    others          of ``dapo``, its mean over the batch's tokens.

    A beginning that leaves share is sampled, charged and scored once, but trained on in each of them. → independent rollouts for
    ``children`` = w; REINFORCE++ with the group's mean as baseline if also ``levels="root"``. Not here: the stop at a repetition. The
    released code whitens by a Bessel-corrected deviation, prefers leaves that answered when it restarts, and deals remainders last.
    """
    plain = dapo(group, clip_low, clip_high, tries, overlong_cache, "batch", epochs, minibatches)
    (collect,) = (step for step in plain.stages[0].steps if isinstance(step, Collect))
    through = Trees(Branching(segment, children, first, shares, restart=restart))
    source = DynamicSampling(OnPolicy(group=group, through=through), tries=tries)
    relative = GroupRelative(scale="none") if levels == "root" else SubtreeRelative(levels, drop)
    return plain.with_collect(source=source, edits=(*collect.edits, Nodes())).but(advantage=Centred(relative, scale=True))


LONG = {"task": "letters:long?levels=4-5", "model": "tiny:long", "max_actions": 40, "group": 8, "first": 0}
BUDGET = {"tokens": 40_000, "steps": 100, "prompts": 8, "lr": 3e-5, "eval_count": 512, "eval_every": 50}
claim(
    "treepo",
    "beats",
    "At equally many sampled tokens, trees with the mean of subtree advantages end higher than independent rollouts, than trees whose "
    "advantage is the root's alone, and than levels weighted by size.",
    arms={
        "subtrees": "treepo",
        "independent": "treepo:levels=root,children=8",
        "root": "treepo:levels=root",
        "by size": "treepo:levels=size",
    },
    settings={**LONG, **BUDGET},
    budget="tokens",
    stand_in="a character model of 0.2 million parameters and answers of 26 or 38 tokens in segments of 8 for a 7B model on mathematics in "
    "segments of 512; eight leaves for sixteen, two children from the root on",
    why="One habit is to be unlearnt and every arm ends at the ceiling: the budget ends before. At equal tokens trees take some 30 % more "
    "updates, of more correlated leaves; seconds are not compared",
)
claim(
    "treepo.savings",
    "beats",
    "Trees sample fewer tokens per token of their leaves than independent rollouts (the paper: 20 to 40 % fewer).",
    arms=("tree", "independent"),
    measure=savings,
    smoke={"prompts": 4},
    metric="sampled per leaf token",
    higher=False,
    stand_in="a character model, segments of 8 tokens and eight leaves; tokens are counted, not seconds",
    why="What is saved depends on the segment's length against the answer's: 4 tokens save half as much, sixteen leaves more.",
)
