"""What flows: N trajectories of at most T actions, as a frozen tree of named tensors.

Axes: N trajectories, T actions, G group, V vocabulary, D features. Everything pads on the right of axis 1, with
zeros; a value that a row does not have is NaN (floats), 0 (integers) or False. Three masks are kept apart:
``mask`` (where the policy acted), ``present`` (what exists in the context: tool output and prompts are present but
are not actions) and a term's own ``where`` (what it selects).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.errors import QuatrainError, nearest

# Well-known names: what they mean, and who provides them when they are asked for and absent.
VOCABULARY: dict[str, tuple[str, str]] = {
    # per action, [N, T]
    "current_logp": ("log π_θ of the action under the weights being trained", "the training loop, when scoring"),
    "current_entropy": ("entropy of π_θ at the action, nats", "the training loop, when scoring"),
    "current_top_logp": ("log π_θ of the likeliest action", "the training loop, when scoring"),
    "current_policy_shift": (
        "m_F: how far this action's update alone moves the policy, a KL in nats",
        "Shifts(…) among the edits of the Fit",
    ),
    "current_objective_shift": ("m_H: what this action's update alone adds to its objective", "Shifts(…) among the edits of the Fit"),
    "current_q": ("the critic's value of π_θ's own action", "the training loop, when scoring, with a model named critic"),
    "behaviour_logp": ("log-probability under the distribution really sampled from", "a sampling source: OnPolicy"),
    "old_logp": ("log-probability under the weights at the start of the update", "OnPolicy, or the edit Score('policy', name='old_logp')"),
    "reference_logp": ("log-probability under a frozen reference", "models={'reference': Frozen()} with the edit Score('reference')"),
    "proxy_logp": ("log-probability under a policy that stands for the old one", "the edit Score('proxy'), of a model named proxy"),
    "teacher_logp": ("log-probability under the teacher", "models={'teacher': Given('teacher')} with the edit Score('teacher')"),
    "corrupted_logp": (
        "log-probability where the observation is damaged",
        "the edits Corrupt() and Score('policy', 'corrupted_logp', role='corrupted')",
    ),
    "old_entropy": ("entropy of the policy that sampled, at temperature 1, nats", "the edit ScoreEntropy()"),
    "rewards": ("reward of each action", "an environment or a process reward"),
    "value": ("critic's value before the action", "the edit Values('critic')"),
    "next_value": ("critic's value after the action", "the edit Values('critic')"),
    "terminated": ("the episode ended after this action, for good: no value follows", "a sampling source"),
    "truncated": ("the episode was cut after this action: a value follows", "a sampling source"),
    "present": ("the position is content (an action or an observation), not padding", "every source"),
    "version": ("number of updates of the weights that chose this action", "a sampling source"),
    "origin": ("who chose this action: see Origin", "every source"),
    "temperature": ("temperature that the action was sampled at; absent means 1", "a sampling source"),
    "draw": (
        "[N, T] seed of what is random when the action is learnt from: dropout, target noise, latents",
        "the source Draw, or the edit Draws()",
    ),
    "support": ("[N, T, K] the truncated support (top-k, top-p) sampled from: action id + 1, 0 for none", "a sampling source"),
    "duration": ("how much of the environment's time the action takes; absent means 1", "a source of options or denoising steps"),
    "latent": ("the point that a denoising step began at", "a rollout of a flow policy"),
    "denoising": ("number of the denoising step within its decision, from 0", "a rollout of a flow policy"),
    "turn": ("number of the turn within the trajectory, from 0", "a multi-turn source"),
    "node": ("the stretch of a tree of rollouts that the action belongs to, shared by the leaves below it", "the edit Nodes()"),
    # per trajectory, [N]
    "share": ("what part of its prompt's probability a tree's leaf stands for", "a source that samples through Trees"),
    "reward": ("outcome reward of the trajectory", "a task's rewards"),
    "prompt": ("group key: trajectories that began at the same Start share it", "every source"),
    "answer": ("key of the trajectory's final answer: equal keys are equal answers", "the edit AnswerKeys()"),
    "pair": ("group key of a pair: of preferences, or of tasks learnt together", "the Pairs source, or the edit Sides()"),
    "side": ("number of the side of its pair that the row is of, from 0", "the edit Sides()"),
    "similarity": ("of the sides of the row's pair, in [0, 1]", "the edit Sides()"),
    "preference": ("+1 chosen, -1 rejected", "the Pairs source"),
    "seed": ("the seed that regenerates this trajectory", "a sampling source"),
    "trajectory": ("key that the rows of one trajectory share, one row per draw of its likelihood", "the edit MaskDraws()"),
    "hidden": ("[N, C] the positions of the canvas that a mask draw hides", "a masked-diffusion policy, or the edit MaskDraws()"),
    "role": ("0 for who was asked by the user (a planner), 1 and more for who was asked by another (a worker)", "a task of turns"),
    "episode": ("key shared by a planner's trajectory and all that it called: the seed of the planner's", "a task of turns"),
    "parent": ("seed of the trajectory that called this one, -1 for none", "a task of turns"),
}


class Origin:
    """Who chose an action. Values of the ``origin`` column."""

    POLICY, DEMONSTRATION, TEACHER = 0, 1, 2


@dataclass(frozen=True)
class Batch:
    """N trajectories × T actions. Immutable: every method returns a new batch that shares the untouched tensors.

    mask      [N, T] bool: True where the policy acted.
    actions   [N, T] integers or [N, T, D] floats: what was executed.
    columns   name → [N, T, …]: one value per action (log-probabilities, version, origin, rewards, values, segments).
    rows      name → [N, …]: one value per trajectory (reward, group keys, row links, seeds).
    contexts  role → name → [N, …]: what a role sees before and around the actions. Language models: ``tokens`` [N, P]
              and ``mask`` [N, P] of the prompt; networks: ``observations`` [N, T+1, …]. ``"policy"`` is the role that sampled.
    notes     name → tuple of N Python values (texts, items): for rewards, reports and people, never for the maths.

    Shapes are checked when a batch is made. A name may be in ``columns`` or in ``rows``, never in both.
    """

    mask: Tensor
    actions: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    contexts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    notes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.ndim != 2:
            raise QuatrainError(
                "a batch's mask says where the policy acted", given=f"{self.mask.dtype} {tuple(self.mask.shape)}", expected="bool [N, T]"
            )
        n_t = self.mask.shape
        for name, value in (("actions", self.actions), *self.columns.items()):
            if value.shape[:2] != n_t:
                raise QuatrainError(
                    f"column {name!r} has one value per action", given=tuple(value.shape), expected=f"[{n_t[0]}, {n_t[1]}, …]"
                )
        per_row = [(name, value.shape[0]) for name, value in self.rows.items()]
        per_row += [(f"{role}.{name}", value.shape[0]) for role, part in self.contexts.items() for name, value in part.items()]
        per_row += [(name, len(value)) for name, value in self.notes.items()]
        for name, count in per_row:
            if count != n_t[0]:
                raise QuatrainError(f"{name!r} has one value per trajectory", given=count, expected=n_t[0])
        if both := set(self.columns) & set(self.rows):
            raise QuatrainError("a name is either per action or per trajectory", given=sorted(both))

    # -- reading ---------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, T)."""
        return self.mask.shape[0], self.mask.shape[1]

    @property
    def device(self) -> torch.device:
        return self.mask.device

    def __contains__(self, name: str) -> bool:
        return name in self.columns or name in self.rows

    def __getitem__(self, name: str) -> Tensor:
        """The column [N, T, …] or row value [N, …] of that name; a missing one says who would provide it."""
        if name in self.columns:
            return self.columns[name]
        if name in self.rows:
            return self.rows[name]
        raise missing(name, (*self.columns, *self.rows))

    @property
    def present(self) -> Tensor:
        """[N, T] bool: positions with content. Where a source says nothing, exactly the actions."""
        return self.columns.get("present", self.mask)

    @property
    def lengths(self) -> Tensor:
        """[N] number of actions per trajectory."""
        return self.mask.sum(1)

    # -- deriving --------------------------------------------------------------------------------------------------
    def with_columns(self, **columns: Tensor) -> Batch:
        return replace(self, columns={**self.columns, **columns})

    def with_rows(self, **rows: Tensor) -> Batch:
        return replace(self, rows={**self.rows, **rows})

    def with_context(self, role: str, **context: Tensor) -> Batch:
        return replace(self, contexts={**self.contexts, role: context})

    def with_notes(self, **notes: Iterable[Any]) -> Batch:
        return replace(self, notes={**self.notes, **{name: tuple(value) for name, value in notes.items()}})

    def take(self, index: Tensor | Sequence[int]) -> Batch:
        """The rows of that index ([M] integers or [N] bool), in its order."""
        index = torch.as_tensor(index, device=self.device)
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        chosen = index.tolist() if self.notes else []
        notes = {name: tuple(value[i] for i in chosen) for name, value in self.notes.items()}
        return replace(self, notes={})._map(lambda value: value[index]).with_notes(**notes)

    def trim(self) -> Batch:
        """Without the trailing positions that are present in no row."""
        any_present = (self.present | self.mask).any(0)
        length = max(1, int(any_present.nonzero()[-1]) + 1 if any_present.any() else 1)
        if length == self.shape[1]:
            return self
        cut = {name: value[:, :length] for name, value in self.columns.items()}
        return replace(self, mask=self.mask[:, :length], actions=self.actions[:, :length], columns=cut)

    def to(self, device: torch.device | str) -> Batch:
        return self._map(lambda value: value.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            mask=function(self.mask),
            actions=function(self.actions),
            columns={name: function(value) for name, value in self.columns.items()},
            rows={name: function(value) for name, value in self.rows.items()},
            contexts={role: {name: function(value) for name, value in part.items()} for role, part in self.contexts.items()},
        )

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """All rows of all batches. Shorter ones are padded on the right; what one of them lacks is NaN, 0 or False there.

        Raises QuatrainError for an empty sequence or for a role that only some of them have.
        """
        batches = [batch for batch in batches if batch is not None]
        if not batches:
            raise QuatrainError("nothing to concatenate", expected="at least one batch")
        if len(batches) == 1:
            return batches[0]
        roles = {frozenset(batch.contexts) for batch in batches}
        if len(roles) > 1:
            raise QuatrainError("batches to concatenate have the same context roles", given=[sorted(role) for role in roles])
        length = max(batch.shape[1] for batch in batches)
        counts = [len(batch) for batch in batches]

        def join(values: list[Tensor | None], lead: tuple[int, ...] = ()) -> Tensor:
            return _stack(values, counts, lead)

        return Batch(
            mask=join([batch.mask for batch in batches]),
            actions=join([batch.actions for batch in batches]),
            columns={
                name: join([batch.columns.get(name) for batch in batches], (length,)) for name in _names(batch.columns for batch in batches)
            },
            rows={name: join([batch.rows.get(name) for batch in batches]) for name in _names(batch.rows for batch in batches)},
            contexts={
                role: {
                    name: join([batch.contexts[role].get(name) for batch in batches])
                    for name in _names(batch.contexts[role] for batch in batches)
                }
                for role in batches[0].contexts
            },
            notes={
                name: sum((batch.notes.get(name, (None,) * len(batch)) for batch in batches), ())
                for name in _names(batch.notes for batch in batches)
            },
        )


def missing(name: str, present: Iterable[str], needed_by: str = "") -> QuatrainError:
    """The error for a column that is asked for and absent: what it is, who needs it and who would provide it."""
    meaning, provider = VOCABULARY.get(name, (None, None))
    return QuatrainError(
        f"column {name!r} is needed{f' by {needed_by}' if needed_by else ''} and absent" + (f" ({meaning})" if meaning else ""),
        given=f"columns {', '.join(sorted(present)) or 'none'}",
        fix=f"it is provided by {provider}" if provider else nearest(name, [*present, *VOCABULARY]),
    )


def spread(value: Tensor, batch: Batch) -> Tensor:
    """A per-trajectory value [N] as [N, T]; a per-action one [N, T] as it is.

    >>> batch = Batch(torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3))
    >>> spread(torch.tensor([1.0, 2.0]), batch).tolist()
    [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    return value[:, None].expand(batch.shape) if value.ndim == 1 else value


def group_index(batch: Batch, by: str = "prompt") -> tuple[Tensor, int]:
    """([N] group number from 0, how many groups) for a group key."""
    groups, index = torch.unique(batch[by], return_inverse=True)
    return index, len(groups)


def group_sum(value: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum of value [N] over each group: [count].

    >>> group_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 0]), 2).tolist()
    [5.0, 2.0]
    """
    return torch.zeros(count, dtype=value.dtype, device=value.device).index_add_(0, index, value)


def _names(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _stack(values: list[Tensor | None], counts: list[int], lead: tuple[int, ...]) -> Tensor:
    """Concatenate along axis 0, padding every other axis on the right with zeros and absent values with NaN, 0 or False."""
    known = [value for value in values if value is not None]
    rank = known[0].ndim - 1
    size = [max(value.shape[axis + 1] for value in known) for axis in range(rank)]
    size[: len(lead)] = lead
    dtype = known[0].dtype
    for value in known[1:]:
        dtype = torch.promote_types(dtype, value.dtype)
    absent = float("nan") if dtype.is_floating_point else 0
    out = known[0].new_zeros((sum(counts), *size), dtype=dtype)
    start = 0
    for value, count in zip(values, counts, strict=True):
        if value is None:
            out[start : start + count] = absent
        else:
            out[(slice(start, start + count), *(slice(0, extent) for extent in value.shape[1:]))] = value
        start += count
    return out
