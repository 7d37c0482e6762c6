"""What is examined: a task, a policy, a recipe, and how they are sampled from. Everything expensive is made once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective
from quatrain.experiments.doctor.tolerance import Tolerance, tolerance_of
from quatrain.knobs import resolve
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from quatrain.rollout.sources import OnPolicy
from quatrain.seeds import derive
from quatrain.training.batching import scored
from quatrain.training.recipe import Recipe
from quatrain.training.state import State

PROMPTS, ACTIONS, SEGMENT = 4, 64, 64  # sizes of the batches on which the machinery is checked
SCORED = 4096  # positions scored at once while checking


class Parity:
    """A stand-in reward, 0 or 1 by a hash of the completion: every group has a signal, whatever the user's reward does."""

    def score(self, completions: Sequence[str], items: Sequence[Any]) -> list[float]:
        return [float(hashlib.blake2b(text.encode()).digest()[0] & 1) for text in completions]


@dataclass
class Patient:
    """knobs: the run's numbers. settings: of the run. models: the recipe's other models, built. recipe: None if it does not fit."""

    task: Any
    policy: Any
    recipe: Recipe | None
    knobs: Mapping[str, float]
    settings: Any
    models: dict[str, Any] = field(default_factory=dict)
    collected: list[Any] | None = None  # what the recipe's fits read, once collected: see ``gradients.cases``

    @property
    def is_text(self) -> bool:
        """Trajectories are texts of a language model, judged by a reward."""
        return hasattr(self.policy, "tokenizer") and hasattr(self.task, "reward")

    @property
    def seed(self) -> int:
        return derive(self.settings.seed, "doctor") % 2**29

    @cached_property
    def tolerance(self) -> Tolerance:
        return tolerance_of(self.policy)

    @cached_property
    def source(self) -> OnPolicy:
        """How the recipe samples, or how one would, its numbers resolved."""
        found = next(iter(find(self.recipe.stages, OnPolicy)), OnPolicy(group=4)) if self.recipe else OnPolicy(group=4)
        return resolve(found, self.knobs)

    @cached_property
    def samples(self) -> bool:
        """Does the recipe sample?"""
        return self.recipe is None or any(True for _ in find(self.recipe.stages, OnPolicy))

    @cached_property
    def sampling(self) -> Sampling:
        source = self.source
        return Sampling(source.temperature, source.top_p, int(source.top_k), int(source.max_actions))

    @cached_property
    def objectives(self) -> list[Objective]:
        return [step.loss for _, step in self.recipe.fits(Objective)] if self.recipe else []

    @property
    def learns_from_rewards(self) -> bool:
        read = {name for objective in self.objectives for name in objective.needs()}
        return bool(read & {"reward", "rewards", "value"})

    @cached_property
    def drill(self) -> Any:
        """The task with a stand-in reward, where it is a text's."""
        if not self.is_text:
            return self.task
        task = copy.copy(self.task)
        task.reward = Parity()
        return task

    @cached_property
    def starts(self) -> list[Any]:
        return list(self.task.starts("train", 0, PROMPTS))

    @cached_property
    def batch(self) -> Batch:
        """Trajectories under the run's own sampling and the stand-in reward."""
        return self.sample(self.sampling)

    def sample(self, sampling: Sampling, policy: Any = None, name: str = "sample") -> Batch:
        limited = replace(sampling, max_actions=min(sampling.max_actions, ACTIONS))
        group = max(2, min(int(self.source.group), 8))
        with torch.no_grad():
            return self.drill.rollout(policy or self.policy, self.starts, group, limited, derive(self.seed, name))

    @torch.no_grad()
    def logp(self, batch: Batch, policy: Any = None) -> Tensor:
        """[N, T] log-probabilities of the actions under the scorer."""
        judge = policy or self.policy
        return scored(batch, lambda part: judge.score(part, [LogProb()]), SCORED)[LogProb()]

    def state(self, **knobs: float) -> State:
        """A run that has not begun, on small batches."""
        small = {"prompts": min(PROMPTS, int(self.knobs.get("prompts", PROMPTS))), "segment": SEGMENT}
        small |= {"max_actions": min(self.sampling.max_actions, ACTIONS)}
        return State(self.drill, {**self.models, "policy": self.policy}, self.seed, knobs={**self.knobs, **small, **knobs})


def find(tree: Any, kind: type) -> Iterator[Any]:
    """Every value of that class in a tree of dataclasses, mappings and sequences."""
    if isinstance(tree, kind):
        yield tree
    elif is_dataclass(tree) and not isinstance(tree, type):
        for part in fields(tree):
            yield from find(getattr(tree, part.name), kind)
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from find(value, kind)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from find(value, kind)


def fingerprint(module: torch.nn.Module, saved: bool = False) -> dict[str, bytes]:
    """A checksum of every parameter and buffer, by name. saved: without buffers that are made anew on loading."""

    def digest(value: Tensor) -> bytes:
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return hashlib.blake2b(raw.tobytes(), digest_size=16).digest()

    values = module.state_dict() if saved else {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: digest(value) for name, value in values.items() if value.numel()}
