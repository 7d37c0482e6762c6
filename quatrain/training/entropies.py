"""An edit that adds the policy's entropies to a collected batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from quatrain.batch import Batch
from quatrain.knobs import Knob
from quatrain.parts.likelihoods import Entropy
from quatrain.training.batching import scored
from quatrain.training.state import State


@dataclass(frozen=True)
class ScoreEntropy:
    """``old_entropy`` [N, T]: the entropy of the policy as it is at every action, at temperature 1, in nats; no gradient."""

    micro_tokens: int | Knob = Knob("micro_tokens", 16384)
    provides = ("old_entropy",)

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> Batch:
        plain = {part: {name: v for name, v in getattr(batch, part).items() if name != "temperature"} for part in ("columns", "rows")}
        policy = state.models["policy"]
        scores = scored(
            replace(batch, **plain),
            lambda part: policy.score(part, [Entropy()]),
            self.micro_tokens,
            getattr(policy, "shares_prefixes", False),
        )
        state.spent["tokens/scored"] += int(batch.mask.sum())
        return batch.with_columns(old_entropy=scores[Entropy()])
