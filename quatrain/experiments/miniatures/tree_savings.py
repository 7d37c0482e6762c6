"""What trees save: actions sampled per action of a leaf, by the embedded model as it is, as trees and independently."""

from __future__ import annotations

import torch

from quatrain.parts.trees import sampled_once
from quatrain.protocols import Sampling
from quatrain.rollout.branching import Branching
from quatrain.rollout.trees import Trees
from quatrain.seeds import derive


def savings(
    seed: int,
    task: str = "letters:long?levels=4-5",
    model: str = "tiny:long",
    segment: int = 8,
    first: int = 0,
    group: int = 8,
    prompts: int = 128,
    max_actions: int = 40,
) -> dict[str, float]:
    """``tree``, ``independent`` → sampled actions per action in the leaves; ``… solved``: share of leaves that are right."""
    from quatrain.tasks.embedded import tiny
    from quatrain.tasks.letters import letters

    problems, policy = letters(task), tiny(model)
    starts = problems.starts("train", seed * prompts, prompts)
    found = {}
    for label, children in (("tree", 2), ("independent", group)):
        plan = Branching(segment, children, first if label == "tree" else 0)
        with torch.no_grad():
            batch = problems.rollout(Trees(plan)(policy), starts, group, Sampling(max_actions=max_actions), derive(seed, "savings"))
        found[label] = float(sampled_once(batch).sum() / batch.mask.sum())
        found[f"{label} solved"] = float(batch["reward"].mean())
    return found
