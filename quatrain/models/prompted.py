"""A policy with a library in its context: log π(a|s, E) = log π(a|s) + Σ_e w_e φ_e(s, a), or E as text before the prompt.

The library is part of ``module``'s state, so that copies and checkpoints have it, and none of its parameters. Empty: the base policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quatrain.errors import QuatrainError
from quatrain.models.tables import TablePolicy
from quatrain.protocols import Policy


class Library(Protocol):
    """What can stand in a policy's context: a value; one without rules changes nothing."""

    def __len__(self) -> int: ...

    def prior(self, like: Tensor) -> Tensor: ...

    def text(self) -> str: ...

    def dumps(self) -> str: ...

    def loads(self, text: str) -> Library: ...


class InContext(nn.Module):
    """A module and a library; the library is bytes of JSON in the state."""

    def __init__(self, base: nn.Module, library: Library):
        super().__init__()
        self.base, self.library = base, library

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(self.library.dumps().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.library = self.library.loads(bytes(state.tolist()).decode())


class Prompted:
    """What every policy with a library has: ``library``, that may be replaced."""

    module: InContext

    @property
    def library(self) -> Library:
        return self.module.library

    @library.setter
    def library(self, library: Library) -> None:
        self.module.library = library

    def _keep(self, folder: Any) -> None:
        (Path(folder) / "library.json").write_text(self.library.dumps(), encoding="utf-8")


class PromptedTable(Prompted, TablePolicy):
    """A table with a rule's weight added at its (row, action)."""

    def __init__(self, base: TablePolicy, library: Library):
        self.module, self.version = InContext(base.module, library), base.version

    @property
    def table(self) -> Tensor:
        values = self.module.base.values
        return values + self.library.prior(values) if len(self.library) else values

    def save(self, folder: Any) -> None:
        """The base policy's files, and ``library.json``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(self.module.base.state_dict(), Path(folder) / "table.pt")
        self._keep(folder)


class PromptedText(Prompted):
    """A language model, whoever samples it, with the rules before its prompt: a chat's go into its first message of the user's."""

    def __init__(self, base: Any, library: Library):
        self.base, self.module = base, InContext(base.module, library)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "base":  # asked for while a copy is made
            raise AttributeError(name)
        return getattr(self.base, name)

    @property
    def version(self) -> int:
        return self.base.version

    @version.setter
    def version(self, version: int) -> None:
        self.base.version = version

    def encode(self, prompt: str | Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of the rules and the prompt."""
        told = self.library.text()
        if isinstance(prompt, str):
            return self.base.encode(told + prompt)
        messages = [dict(message) for message in prompt]
        asked = next((message for message in messages if message["role"] == "user"), None)
        if asked is None:
            raise QuatrainError("rules go into a message of the user's, and there is none", given=[message["role"] for message in messages])
        asked["content"] = told + asked["content"]
        return self.base.encode(messages)

    def score(
        self, batch: Any, statistics: Sequence[Any], role: str = "policy", others: Mapping[str, Any] | None = None
    ) -> dict[Any, Tensor]:
        """As the base policy scores: what the rules said is in the batch's context."""
        bare = {name: getattr(other, "base", other) for name, other in (others or {}).items()}
        return self.base.score(batch, statistics, role, bare)

    def clone(self) -> PromptedText:
        return PromptedText(self.base.clone(), self.library)

    def save(self, folder: Any) -> None:
        """The base policy's files, and ``library.json``."""
        self.base.save(folder)
        self._keep(folder)


@singledispatch
def prompted(policy: Policy, library: Library) -> Any:
    """The policy with a library in its context. Raises QuatrainError for one that reads no text and is no table."""
    if not hasattr(policy, "encode"):
        raise QuatrainError(
            "no library fits into the context of this policy",
            given=type(policy).__name__,
            expected="a language model, or a table",
            fix="task=tool-choice, or a task of texts",
        )
    return PromptedText(policy, library)


@prompted.register
def _(policy: TablePolicy, library: Library) -> PromptedTable:
    return PromptedTable(policy, library)
