"""Other models that a recipe names: copies of the policy, a teacher that the user gives, a critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from quatrain.errors import QuatrainError


class ModelSpec(Protocol):
    """How a named model comes about; ``given`` are those that the user passed by name."""

    def __call__(self, models: Mapping[str, Any], given: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Frozen:
    """A copy of another model as it is when the run starts; a Sync may move it later."""

    of: str = "policy"

    def __call__(self, models: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        return models[self.of].clone()


@dataclass(frozen=True)
class Twin:
    """A copy of another model as it is when the run starts, which then learns on its own: a Fit names it."""

    of: str = "policy"

    def __call__(self, models: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        original = models[self.of]
        twin = original.clone()
        for new, old in zip(twin.module.parameters(), original.module.parameters(), strict=True):
            new.requires_grad_(old.requires_grad)
        twin.module.train(original.module.training)
        return twin


@dataclass(frozen=True)
class Given:
    """A model that the user passes: ``quatrain train opd teacher=PATH``."""

    name: str = "teacher"

    def __call__(self, models: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        if given.get(self.name) is None:
            raise QuatrainError(
                f"this recipe needs a {self.name}",
                given="none",
                fix=f"{self.name}=PATH (a model directory, or tiny:strong on the embedded default)",
            )
        return given[self.name].clone()


@dataclass(frozen=True)
class Critic:
    """A value function of the kind that fits the policy: a network of its own, or a head on a copy of the backbone."""

    of: str = "policy"
    seed: int = 0

    def __call__(self, models: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        from quatrain.models.critics import make_critic

        return make_critic(models[self.of], seed=self.seed)


@dataclass(frozen=True)
class Made:
    """A model that a function makes to fit another: ``Made(twin_critics)``. Under the name ``policy`` it takes the given one's place."""

    make: Callable[[Any], Any]
    of: str = "policy"

    def __call__(self, models: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        return self.make(models[self.of])
