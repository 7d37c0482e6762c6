"""Tool choice: what a request is like says which tool is right; twelve heuristics that nobody is told.

Axes: N trajectories, T decisions, K cues of a decision, S cues, V tools.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quatrain.batch import Batch, Origin
from quatrain.errors import QuatrainError, nearest
from quatrain.models.draws import draw, stream, uniforms
from quatrain.models.tables import TablePolicy
from quatrain.protocols import Sampling

TOOLS = ("search", "calculator", "calendar", "maps", "code runner", "translator", "database", "file reader")
TELLING = (
    *("a sum is asked for", "a date is mentioned", "a place is mentioned", "a foreign phrase is quoted"),
    *("a customer is named", "a table is attached", "a unit is to be converted", "a loop is described"),
    *("the news is referred to", "a distance is asked for", "an invoice number is given", "a deadline is set"),
)
IDLE = (
    *("the request is polite", "the request is long", "it comes from a phone", "it ends with a question mark"),
    *("it is written at night", "it has a greeting", "it has a typing error", "it is in capitals"),
    *("an earlier answer is quoted", "the user is new", "it is marked urgent", "it has an emoji"),
)
CUES = TELLING + IDLE
HELDOUT = 1024


class Request(NamedTuple):
    """A start: the key of its group, its place in the split, and whether it is held out."""

    key: int
    index: int
    heldout: bool


class ToolChoice:
    """A ``quatrain.protocols.Task``. A request is ``turns`` decisions; it is solved (reward 1) if the right tool was chosen in each.

    Each decision shows K = 3 cues: one of twelve that tell (its heuristic names the right tool) and two idle ones. Which tool each
    heuristic names is drawn from ``seed``. The policy is a table [S, V] of cues and tools, whose rows of the cues shown are added up.

    samples      requests to learn from, in the same order again and again.
    skill, blur  of the policy that ``network`` makes: skill at the right tool of a telling cue, and blur · noise everywhere.

    columns [N, T]  ``state`` [N, T, 3], rewards, terminated, truncated, behaviour_logp, old_logp, version, origin, present.
    rows [N]        reward, prompt, seed.
    """

    name = "tool-choice"
    provides = frozenset({"reward", "rewards", "state", "present"})
    has: frozenset[str] = frozenset()

    def __init__(self, seed: int = 0, samples: int = 100, turns: int = 2, skill: float = 1.5, blur: float = 0.7):
        if samples < 1 or turns < 1:
            raise QuatrainError("tool-choice has a request and a decision or more", given=f"samples={samples}, turns={turns}")
        self.seed, self.samples, self.turns, self.skill, self.blur = seed, samples, turns, skill, blur
        pick = uniforms(stream(torch.tensor([seed]), "heuristics"), torch.arange(len(TELLING)))[0]
        self.right = (pick * len(TOOLS)).long()  # [12]
        self.defaults = {"prompts": 20, "max_actions": turns, "lr": 0.1}

    def network(self, hidden: Sequence[int] = (), seed: int = 0) -> TablePolicy:
        """The policy as one finds it: a little skill, and habits."""
        noise = torch.randn(len(CUES), len(TOOLS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        known = torch.zeros_like(noise)
        known[torch.arange(len(TELLING)), self.right] = self.skill
        return TablePolicy(known + self.blur * noise)

    def say(self, cue: int, tool: int, good: bool) -> str:
        """A rule about a cue and a tool, as a text."""
        return f"when {CUES[cue]}, {'use' if good else 'do not use'} the {TOOLS[tool]}"

    def cues(self, starts: Sequence[Request]) -> Tensor:
        """[M, T, 3] the cues of these requests, the telling one first."""
        keys = torch.tensor([start.index + HELDOUT * 1024 * start.heldout for start in starts])
        seeds = stream(keys + (self.seed << 32), "requests")
        draws = uniforms(seeds, torch.arange(3 * self.turns)).view(len(starts), self.turns, 3)
        telling, first = (draws[..., 0] * len(TELLING)).long(), (draws[..., 1] * len(IDLE)).long()
        second = (first + 1 + (draws[..., 2] * (len(IDLE) - 1)).long()) % len(IDLE)
        return torch.stack([telling, len(TELLING) + first, len(TELLING) + second], -1)

    def starts(self, split: str, cursor: int, count: int) -> list[Request]:
        heldout = split != "train"
        size = HELDOUT if heldout else self.samples
        return [Request(position % size, position % size, heldout) for position in range(cursor, cursor + count)]

    @torch.no_grad()
    def rollout(self, policy: TablePolicy, starts: Sequence[Request], group: int, sampling: Sampling, seed: int) -> Batch:
        """``group`` trajectories of each request. Raises QuatrainError for a policy that is no table of cues and tools."""
        self._check(policy)
        cues = self.cues(starts)[:, : sampling.max_actions].repeat_interleave(group, 0)
        n, length = cues.shape[:2]
        random = uniforms(seed + torch.arange(n), torch.arange(length))
        logits = policy.table.detach()[cues].sum(2)
        actions, logp, support = draw(logits.flatten(0, 1), random.flatten(), sampling)
        actions, logp = actions.view(n, length), logp.view(n, length)
        last = torch.zeros(n, length, dtype=torch.bool)
        last[:, -1] = True
        whole = length == self.turns
        reward = ((actions == self.right[cues[..., 0]]).all(1) & whole).double()
        columns = {
            "state": cues,
            "rewards": torch.where(last, reward[:, None], 0.0),
            "terminated": last & whole,
            "truncated": last & (not whole),
            "behaviour_logp": logp,
            "old_logp": logp,
            "version": torch.full((n, length), policy.version),
            "origin": torch.full((n, length), Origin.POLICY),
            "present": torch.ones(n, length, dtype=torch.bool),
        }
        if support is not None:
            columns["support"] = support.view(n, length, -1)
        rows = {
            "reward": reward,
            "prompt": torch.tensor([start.key for start in starts]).repeat_interleave(group),
            "seed": seed + torch.arange(n),
        }
        if sampling.temperature not in (0, 1):
            rows["temperature"] = torch.full((n,), sampling.temperature, dtype=torch.float64)
        return Batch(columns["present"], actions, columns, rows)

    def demonstrations(self, policy: TablePolicy, starts: Sequence[Request]) -> Batch:
        raise QuatrainError(f"{self.name} has no demonstrations", fix="a recipe that explores, such as training-free-grpo or grpo")

    @torch.no_grad()
    def evaluate(self, policy: TablePolicy, count: int, samples: int, sampling: Sampling, seed: int) -> dict[str, float]:
        """Held out: ``success``, the exact chance of solving a request at temperature 1; ``accuracy``, with the likeliest tools."""
        self._check(policy)
        cues = self.cues(self.starts("heldout", 0, min(count, HELDOUT)))
        logp, right = policy.table.detach()[cues].sum(2).log_softmax(-1), self.right[cues[..., 0]]
        chance = logp.gather(-1, right[..., None])[..., 0].sum(-1).exp()
        return {"success": float(chance.mean()), "accuracy": float((logp.argmax(-1) == right).all(1).double().mean())}

    def _check(self, policy: Any) -> None:
        ours = (len(CUES), len(TOOLS))
        theirs = tuple(policy.table.shape) if hasattr(policy, "table") else type(policy).__name__
        if theirs != ours:
            raise QuatrainError(f"the policy does not fit {self.name}", given=theirs, expected=f"a table {ours}", fix="model=auto")


def tool_choice(options: Mapping[str, Any], seed: int = 0) -> ToolChoice:
    """The task with these options. Raises QuatrainError for one that is unknown or no number."""
    known = inspect.signature(ToolChoice).parameters
    for name, value in options.items():
        if name not in known:
            raise QuatrainError(f"tool-choice has no option {name!r}", given=f"{name}={value}", fix=nearest(name, known))
        whole = isinstance(known[name].default, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise QuatrainError(f"option {name!r} is a {'whole ' if whole else ''}number", given=f"{name}={value}")
    return ToolChoice(**{"seed": seed, **options})
