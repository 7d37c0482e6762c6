"""Statistics of a causal language model at the actions of a batch, and nowhere else.

Rows are made contiguous (prompt, then response, padding only at the end), so that the backbone needs no attention
mask; samples of one prompt share what they have in common where that is less work (``prefix_tree``). The hidden states
of the M actions are gathered, and only those meet the head, a chunk at a time: logits for prompts, padding and the whole
batch at once ([N, T, V]) never exist. With more than one chunk the logits of a chunk are computed again in the backward
pass; log-probability and entropy under a bare linear head then have a written-out gradient (``fused``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, spread
from quatrain.errors import QuatrainError
from quatrain.models.backbone import Backbone
from quatrain.models.chunked import by_chunks
from quatrain.models.distributions import Categorical
from quatrain.models.fused import BLOCK, log_prob_and_entropy
from quatrain.models.last_layer import LastLayer
from quatrain.models.needed import only_at
from quatrain.models.prefix_tree import cost_of, fits, grow, hidden_of
from quatrain.models.products import FastLinear, is_onednn
from quatrain.parts.likelihoods import Entropy, LogProb
from quatrain.protocols import Statistic

CHUNK_ELEMENTS = 2**22  # logits held at once; measured on CPU: 2^24 leaves the cache and takes half as long again


@dataclass(frozen=True)
class Rows:
    """A batch as a language model reads it.

    ids [N, L] int64: prompt and response without gaps, then padding; index [M]: where in the flattened [N·L] hidden
    states the distribution of each action is, in the (row-major) order of ``batch.mask``; lengths, prompts [N]: tokens of
    a row, and those of its prompt.
    """

    ids: Tensor
    index: Tensor
    lengths: Tensor
    prompts: Tensor


def contiguous(batch: Batch, role: str, pad: int = 0, whole: bool = True) -> Rows:
    """Prompt of that role followed by what is present in the response, without the padding in between.

    whole  False: only what an action was predicted from. Of short answers that leaves out a good part: the last action of each
           row, and what follows it.

    Raises QuatrainError when the batch has no such context, or an action has nothing before it.
    """
    if role not in batch.contexts:
        raise QuatrainError(
            f"the batch has no context of role {role!r}",
            given=", ".join(batch.contexts) or "none",
            expected="contexts[role]['tokens'] and ['mask']",
        )
    context = batch.contexts[role]
    tokens = torch.cat([context["tokens"].long(), batch.actions.long()], 1)
    keep = torch.cat([context["mask"].bool(), batch.present | batch.mask], 1)
    place = keep.cumsum(1) - 1
    if not whole:
        keep[:, context["tokens"].shape[1] :] &= batch.mask.flip(1).cumsum(1).flip(1) > batch.mask.long()  # an action comes later
    lengths = keep.sum(1)
    longest = max(1, int(lengths.max())) if len(batch) else 1
    # What is dropped goes into one more column that is cut off again.
    ids = torch.full((len(batch), longest + 1), pad, dtype=torch.long, device=batch.device)
    ids = ids.scatter(1, place.masked_fill(~keep, longest), tokens)[:, :longest]
    rows, steps = batch.mask.nonzero(as_tuple=True)
    before = place[rows, context["tokens"].shape[1] + steps] - 1
    if len(before) and int(before.min()) < 0:
        raise QuatrainError(
            "an action has nothing before it", expected="at least one prompt token in every row", fix="begin prompts with a token"
        )
    return Rows(ids, rows * longest + before, lengths, context["mask"].sum(1))


def hidden_at_actions(backbone: Backbone, batch: Batch, role: str, after: int = 0) -> Tensor:
    """[M, D] hidden states from which the actions were predicted, in the order of ``batch.mask``; after=1: those that they leave."""
    # Padding is at the end, where causal attention hides it: any id does, but the model's own pad id would make it warn.
    pad = 1 if backbone.model.config.get_text_config(decoder=True).pad_token_id == 0 else 0
    rows = contiguous(batch, role, pad, whole=after > 0)
    # Checkpointed layers (the only reason for training mode) are computed again outside of this function.
    quick = is_onednn() and rows.ids.device.type == "cpu" and not backbone.model.training and not _is_transformed()
    known = fits(backbone)
    trees = grow(rows.ids, rows.lengths, rows.prompts, cost_of(backbone)) if known else None
    index, positions = rows.index + after, rows.ids.numel()
    if trees is not None:
        index, positions = trees.place.flatten()[index], trees.ids.numel()
    with FastLinear() if quick else nullcontext(), only_at(backbone.decoder, index, positions) if known else nullcontext():
        hidden = backbone.hidden(rows.ids) if trees is None else hidden_of(backbone, trees)
    return torch.nn.functional.embedding(index, hidden.flatten(0, 1))


def score(
    backbone: Backbone,
    batch: Batch,
    statistics: Sequence[Statistic],
    role: str = "policy",
    others: Mapping[str, Backbone] | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> dict[Statistic, Tensor]:
    """Each statistic at every action, [N, T] and at least fp32; 0 where ``batch.mask`` is False.

    ``temperature`` (per row or action; absent or NaN is 1) and ``support`` of the batch apply. ``others`` are read
    without gradient, each in the context of its own name if the batch has one, else in ``role``.

    Raises QuatrainError for a missing context or a missing other model.
    """
    statistics = list(statistics)
    needed = {name for statistic in statistics for name in statistic.needs}
    others = others or {}
    if missing := needed - set(others):
        raise QuatrainError(
            "a statistic reads models that were not given", given=", ".join(others) or "none", expected=", ".join(sorted(missing))
        )
    hidden = hidden_at_actions(backbone, batch, role)
    with torch.no_grad():
        seen = {name: hidden_at_actions(others[name], batch, name if name in batch.contexts else role) for name in sorted(needed)}
    action = batch.actions[batch.mask]
    support, temperature = _sampled_from(batch)

    if len(hidden) * backbone.vocabulary > chunk_elements and support is None and _is_fused(backbone, hidden, statistics):
        elements = min(BLOCK, chunk_elements) if hidden.device.type == "cpu" else chunk_elements
        scale = hidden.new_full((len(hidden),), backbone.scale) / (1.0 if temperature is None else temperature.to(hidden.dtype))
        both = log_prob_and_entropy(hidden, backbone.head.weight, action, scale, elements)
        return _placed(batch, statistics, [both[type(statistic) is Entropy] for statistic in statistics])

    def measure(logits: Tensor, rows: Any) -> Tensor:
        """[S, m] statistics of the actions ``rows`` (a slice or an index) from their logits [m, V]."""
        heat = None if temperature is None else temperature[rows]
        own = Categorical(backbone.finish(logits), None if support is None else support[rows], heat)
        with torch.no_grad():
            rest = {name: Categorical(others[name].logits(states[rows]), None, heat) for name, states in seen.items()}
        return torch.stack([statistic(own, action[rows], rest) for statistic in statistics])

    size = max(1, chunk_elements // backbone.vocabulary)
    return _placed(batch, statistics, by_chunks(measure, hidden, backbone.head, size, backbone.plain_head))


def last_layer(backbone: Backbone, batch: Batch, role: str = "policy", chunk_elements: int = CHUNK_ELEMENTS) -> LastLayer:
    """The head and what it reads at the M actions, in at least fp32; the weights are the model's own, whatever else they are tied to.

    Raises QuatrainError for a head that is no bare matrix product, is sharded or not trained, and for capped logits.
    """
    weight = backbone.head.weight
    if not backbone.plain_head or backbone.softcap is not None or type(weight.data) is not Tensor or not weight.requires_grad:
        raise QuatrainError(
            "this recipe models the update of the language-model head",
            given=f"{type(backbone.head).__name__}, trained: {weight.requires_grad}, softcap: {backbone.softcap}",
            expected="a bare linear head that is trained, on one device, without a cap on the logits",
        )
    states = hidden_at_actions(backbone, batch, role)
    support, temperature = _sampled_from(batch)

    def distribution(rows: slice) -> Categorical:
        return Categorical(
            backbone.logits(states[rows]), None if support is None else support[rows], None if temperature is None else temperature[rows]
        )

    hidden = states.to(torch.promote_types(states.dtype, torch.float32)) * backbone.scale
    hidden = hidden if temperature is None else hidden / temperature.to(hidden.dtype)[:, None]
    return LastLayer(weight, hidden, distribution, chunk=max(1, chunk_elements // backbone.vocabulary))


def _sampled_from(batch: Batch) -> tuple[Tensor | None, Tensor | None]:
    """(support [M, K], temperature [M]) of the actions; None where it is the whole vocabulary, or 1."""
    temperature = spread(batch["temperature"], batch)[batch.mask].nan_to_num(1.0) if "temperature" in batch else None
    return batch["support"][batch.mask] if "support" in batch else None, temperature


def _placed(batch: Batch, statistics: Sequence[Statistic], values: Sequence[Tensor]) -> dict[Statistic, Tensor]:
    """Values [M] of the actions as [N, T], 0 elsewhere."""
    return {
        statistic: value.new_zeros(batch.shape).masked_scatter(batch.mask, value)
        for statistic, value in zip(statistics, values, strict=True)
    }


def _is_fused(backbone: Backbone, hidden: Tensor, statistics: Sequence[Statistic]) -> bool:
    """Whether the written-out gradient applies: log-probability and entropy of a matrix product in fp32 or fp64, no transforms."""
    weight = backbone.head.weight
    return (
        all(type(statistic) in (LogProb, Entropy) for statistic in statistics)
        and backbone.plain_head
        and backbone.head.bias is None
        and backbone.softcap is None
        and hidden.dtype == weight.dtype
        and hidden.dtype in (torch.float32, torch.float64)
        and type(weight.data) is Tensor  # not a sharded one
        and not torch.is_autocast_enabled(hidden.device.type)
        and not _is_transformed()
    )


def _is_transformed() -> bool:
    """Within torch.func (vmap, grad, jvp): written-out gradients have no rules for it."""
    return torch._C._are_functorch_transforms_active()
