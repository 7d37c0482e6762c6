"""What a teacher sees and its pupil does not: the same actions in a context with the solution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.rollout.sources import require
from quatrain.tasks.warm_start import TOLD


@dataclass(frozen=True)
class Privileged:
    """The context ``role``: the policy's prompt with the reference solution of its start; trajectories without one are left out.

    template  the teacher's prompt, of ``{prompt}`` and ``{solution}``; of a chat it is the last message. The embedded
              ``tiny:privileged`` reads the default.

    A task without contexts (a table) has one view of a state and is left as it is.
    """

    template: str = TOLD
    role: str = "teacher"

    def __post_init__(self) -> None:
        if "{solution}" not in self.template or "{prompt}" not in self.template:
            raise QuatrainError(
                "a privileged prompt holds the prompt and the solution", given=self.template, expected="{prompt} {solution}"
            )

    def check(self, task: Any) -> None:
        require(task, "demonstrations")

    def __call__(self, state: Any, batch: Batch) -> Batch:
        if "policy" not in batch.contexts:
            return batch
        batch = batch.take([place for place, start in enumerate(batch.notes["start"]) if start.solution is not None])
        if not len(batch):
            return batch.with_context(self.role, **batch.contexts["policy"])
        encode = state.models["policy"].encode
        rows = [torch.tensor(encode(told(self.template, start.prompt, start.solution))) for start in batch.notes["start"]]
        tokens = pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        return batch.with_context(self.role, tokens=tokens.to(batch.device), mask=mask.to(batch.device))


def told(template: str, prompt: str | Sequence[Mapping[str, str]], solution: str) -> Any:
    """The prompt (a text, or the last message of a chat) as the template has it.

    >>> told("{solution}? {prompt}", [{"role": "user", "content": "1+1="}], "2")
    [{'role': 'user', 'content': '2? 1+1='}]
    """

    def write(text: str) -> str:  # never ``format``: solutions have braces
        before, _, after = template.partition("{prompt}")
        return text.join(part.replace("{solution}", solution) for part in (before, after))

    if isinstance(prompt, str):
        return write(prompt)
    *earlier, last = prompt
    return [*earlier, {**last, "content": write(last["content"])}]
