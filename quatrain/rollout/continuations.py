"""Next-sequence prediction: the policy reads a part of a document and goes on; its reward is how the document went on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.rewards.continuation import agreement, resemblance
from quatrain.rollout.documents import whole_documents
from quatrain.rollout.positions import Choice, chosen, pooled
from quatrain.rollout.sources import OnPolicy, charge, require
from quatrain.seeds import mix
from quatrain.training.entropies import ScoreEntropy


@dataclass(frozen=True)
class Continuations:
    """One continuation from one position in each of ``whole.group`` equal chunks of ``whole.prompts`` new documents.

    length       k tokens, at most. reward: ``binary`` share of them that are the document's own; ``cosine`` of the hidden states that
                 they leave with those of the document; ``hybrid``: the sum.
    choice, temperature  of the position in its chunk: see ``positions.chosen``. The entropies to draw by are pooled over ``length``
                 tokens; argmax and argmin are of the token's own.
    micro_tokens when documents are scored. whole: of the tokens' distribution. The group key is the document.

    A task without texts (a table) has nothing to cut: there it gives whole trajectories in their place.
    """

    length: int = 5
    reward: Literal["cosine", "binary", "hybrid"] = "cosine"
    choice: Choice = "entropy"
    temperature: float = 1.0
    micro_tokens: int | Knob = Knob("micro_tokens", 16384)
    whole: OnPolicy = OnPolicy(group=8)

    def __post_init__(self) -> None:
        for name, known in (("reward", ("cosine", "binary", "hybrid")), ("choice", ("entropy", "uniform", "argmax", "argmin"))):
            if getattr(self, name) not in known:
                raise QuatrainError(f"unknown {name} of continuations", given=getattr(self, name), expected=", ".join(known))
        if self.length < 1 or self.temperature <= 0:
            raise QuatrainError("continuations have a length and a temperature", given=self, expected="length ≥ 1, temperature > 0")

    def provides(self, task: Any) -> set[str]:
        require(task, "demonstrations")
        return self.whole.provides(task)

    @torch.no_grad()
    def __call__(self, state: Any) -> Batch:
        policy, starts = state.models[self.whole.model], state.next_starts(self.whole.prompts)
        if not hasattr(policy, "encode"):
            return self.whole.of(state, starts)
        if not hasattr(policy, "action_states"):
            raise QuatrainError(
                "documents are continued by a causal language model", given=type(policy).__name__, fix="model=tiny-delta or model=tiny"
            )
        shown = state.task.demonstrations(policy, starts)
        documents = ScoreEntropy(self.micro_tokens)(state, whole_documents(policy, shown))
        row, place = self.places(documents, state.draw("positions"))
        seed = state.draw("sample")
        texts = torch.cat([documents.contexts["policy"]["tokens"][:, :1], documents.actions], 1).tolist()
        prompts = [texts[r][: p + 1] for r, p in zip(row.tolist(), place.tolist(), strict=True)]
        seeds = torch.tensor([mix(seed, number) for number in range(len(prompts))], dtype=torch.int64)
        batch = policy.sample(prompts, 1, replace(self.whole.sampling, max_actions=self.length), seeds)
        ahead = place[:, None] + torch.arange(self.length, device=place.device)
        batch = batch.with_rows(prompt=documents["prompt"][row], reward=self.rewarded(policy, batch, documents, row[:, None], ahead))
        of = {start.id: start for start in starts}
        batch = batch.with_notes(
            start=[of[key] for key in batch["prompt"].tolist()],
            prompt=[policy.decode(prompt) for prompt in prompts],
            completion=[policy.decode(actions[mask]) for actions, mask in zip(batch.actions, batch.mask, strict=True)],
            answer=[policy.decode(tokens) for tokens in documents.actions[row[:, None], ahead]],
        )
        charge(state, batch)
        return batch

    def places(self, documents: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """(row [R], place [R]) of documents with ``old_entropy``: the action that a continuation begins at."""
        entropy = documents["old_entropy"]
        if self.choice == "entropy":
            entropy = pooled(entropy, documents.mask, self.length)
        row, place = chosen(entropy, documents.lengths, self.whole.group, self.length, self.choice, self.temperature, seed)
        if not len(row):
            raise QuatrainError(
                "no document is long enough to be continued",
                given=f"{int(documents.lengths.max())} tokens after the first",
                expected=f"length={self.length} or more",
            )
        return row, place

    def rewarded(self, policy: Any, batch: Batch, documents: Batch, row: Tensor, ahead: Tensor) -> Tensor:
        """[R] rewards of sampled continuations, of which the documents have the actions ``ahead`` [R, K]."""
        reward = torch.zeros(len(batch), dtype=torch.float32, device=batch.device)
        if self.reward != "cosine":
            reward += agreement(batch.actions, batch.mask, documents.actions[row, ahead])
        if self.reward != "binary":
            reward += resemblance(policy.action_states(batch), batch.mask, policy.action_states(documents)[row, ahead])
        return reward
