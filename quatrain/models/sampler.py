"""Sampling from a causal language model: one forward per token and nothing else.

A prompt is prefilled once and its cache repeated over its rows; rows that have finished leave the batch; stopping is
decided by tensor operations, and only rows whose last token could complete a stop text are decoded. Every row draws
from its own seed (``draws.uniforms``), so it regenerates identically, up to floating point, in any company.

Axes: N rows (trajectories), B rows still alive in the current block, T tokens, K support, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.models.backbone import Backbone
from quatrain.models.distributions import Categorical
from quatrain.models.draws import draw, truncates, uniforms
from quatrain.models.fast_decode import FastDecoder, fits
from quatrain.models.products import FastLinear, is_onednn
from quatrain.protocols import Sampling

KEEP = 0.85  # the batch is compacted when at most this part of it is still alive: copying the cache then pays within a few steps


@dataclass(frozen=True)
class Samples:
    """N completions of at most T tokens, padded on the right with zeros.

    tokens [N, T] int64; mask [N, T] bool, the end-of-sequence token included; logp [N, T] fp32 under the distribution
    sampled from; support [N, T, K] int32 action id + 1 where top-k or top-p is on; truncated [N] bool: cut at the limit;
    temperature [N, T] fp32 where it differs by token.
    """

    tokens: Tensor
    mask: Tensor
    logp: Tensor
    support: Tensor | None
    truncated: Tensor
    temperature: Tensor | None = None


@dataclass(frozen=True)
class Stops:
    """What ends a completion: end-of-sequence ids, and texts (with how to look for them)."""

    eos: tuple[int, ...]
    texts: tuple[str, ...] = ()
    decode: Callable[[list[int]], str] | None = None
    could_end: Tensor | None = None  # [V] bool: a stop text can be complete after this token

    def after(self, action: Tensor, tail: Callable[[Tensor], list[list[int]]]) -> Tensor:
        """[B] bool for the last tokens [B]; ``tail(index)`` gives the last tokens of those rows."""
        done = action == self.eos[0] if self.eos else torch.zeros_like(action, dtype=torch.bool)
        for token in self.eos[1:]:
            done |= action == token
        if self.texts:
            for row, tokens in zip(index := (self.could_end[action] & ~done).nonzero()[:, 0], tail(index), strict=True):
                text = self.decode(tokens)
                done[row] = any(stop in text for stop in self.texts)
        return done

    @property
    def span(self) -> int:
        """Tokens that a stop text may stretch over: a character has at most four bytes, a byte-level token at least one."""
        return 4 * max(map(len, self.texts), default=0) + 8


def sample(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    group: int,
    sampling: Sampling,
    seeds: Tensor,
    stops: Stops,
    pad: int = 0,
    max_rows: int | None = None,
) -> Samples:
    """``group`` completions of each prompt, rows ordered prompt by prompt, so N = len(prompts)·group.

    seeds     [N] int64, one per row.
    pad       any token id: what padding inside the batch is filled with (always masked).
    max_rows  rows sampled at the same time; more are sampled in blocks of similar prompt length. None for all at once.

    The model should be in evaluation mode. Raises QuatrainError for an empty prompt, an impossible sampling, or
    prompts that leave no room for ``max_actions`` within the model's positions.
    """
    lengths = _check(backbone, prompts, sampling)
    owner = [i for i in range(len(prompts)) for _ in range(group)]
    order = sorted(range(len(owner)), key=lambda row: (lengths[owner[row]], owner[row]))
    size = max_rows or len(owner)
    blocks = [order[start : start + size] for start in range(0, len(order), size)]
    device = backbone.head.weight.device
    with torch.no_grad():
        parts = [
            _block(backbone, [prompts[owner[row]] for row in block], sampling, seeds.to(device)[block], stops, pad) for block in blocks
        ]
        return _join(parts, torch.tensor(order, device=device).argsort())


def _check(backbone: Backbone, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[int]:
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.top_k < 0 or sampling.max_actions < 1:
        raise QuatrainError(
            "nothing can be sampled so", given=sampling, expected="temperature ≥ 0, 0 < top_p ≤ 1, top_k ≥ 0, max_actions ≥ 1"
        )
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or not min(lengths):
        raise QuatrainError("a prompt has no token", given=f"{len(lengths)} prompts", expected="at least one prompt of at least one token")
    room = getattr(backbone.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if room and max(lengths) + sampling.max_actions > room:
        raise QuatrainError(
            "a prompt and its completion do not fit into the model's positions",
            given=f"{max(lengths)} prompt tokens + max_actions={sampling.max_actions}",
            expected=f"at most {room}",
            fix="lower max_actions or drop long prompts",
        )
    return lengths


@dataclass
class _Written:
    """What the rows of a block have produced, by step and row, so that compaction does not touch it."""

    tokens: Tensor  # [T, N]
    logp: Tensor  # [T, N]
    length: Tensor  # [N] tokens so far of the rows that have left
    done: Tensor  # [N] bool
    temperature: Tensor | None = None  # [T, N]
    support: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # per step: (rows [B], ids + 1 [B, K])


def _block(backbone: Backbone, prompts: list[Sequence[int]], sampling: Sampling, seeds: Tensor, stops: Stops, pad: int) -> Samples:
    device, count, limit = seeds.device, len(prompts), sampling.max_actions
    is_heated = sampling.heat is not None and sampling.temperature != 0
    hidden, state = _prefill(backbone, prompts, pad, limit, device)
    uniform = uniforms(seeds, torch.arange(limit, device=device)).T.contiguous()
    out = _Written(
        tokens=torch.zeros(limit, count, dtype=torch.long, device=device),
        logp=torch.zeros(limit, count, dtype=torch.float32, device=device),
        length=torch.zeros(count, dtype=torch.long, device=device),
        done=torch.zeros(count, dtype=torch.bool, device=device),
        temperature=torch.zeros(limit, count, dtype=torch.float32, device=device) if is_heated else None,
    )
    rows = torch.arange(count, device=device)
    alive, length = torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(rows)
    look_every = 1 if device.type == "cpu" else 8  # reading a count waits for an accelerator
    for step in range(limit):
        logits = backbone.logits(hidden)
        if is_heated:
            factor = sampling.heat(Categorical(logits).entropy()).float()
            logits = logits.float() / factor[:, None]
            out.temperature[step].index_copy_(0, rows, sampling.temperature * factor)
        action, logp, support = draw(logits, uniform[step][rows], sampling)
        out.tokens[step].index_copy_(0, rows, action)
        out.logp[step].index_copy_(0, rows, logp.float())
        if support is not None:
            out.support.append((rows, support))
        length += alive
        if stops.eos or stops.texts:
            begin = max(0, step + 1 - stops.span)
            alive &= ~stops.after(action, lambda index: out.tokens[begin : step + 1, rows[index]].T.tolist())  # noqa: B023
        if step + 1 == limit:
            break
        if step % look_every == 0 and (left := int(alive.sum())) <= KEEP * len(rows):
            out.length[rows], out.done[rows] = length, ~alive
            if not left:
                break
            index = alive.nonzero()[:, 0]
            rows, action, length, alive = rows[index], action[index], length[index], alive[index]
            state.select(index)
        hidden = state.advance(action)
    out.length[rows], out.done[rows] = length, ~alive
    return _collect(out, backbone.vocabulary, sampling)


def _collect(out: _Written, vocabulary: int, sampling: Sampling) -> Samples:
    longest = int(out.length.max())
    mask = torch.arange(longest, device=out.tokens.device) < out.length[:, None]
    support = None
    if truncates(sampling, vocabulary):
        width = max(ids.shape[1] for _, ids in out.support)
        support = torch.zeros(*mask.shape, width, dtype=torch.int32, device=mask.device)
        for step, (rows, ids) in enumerate(out.support[:longest]):
            support[rows, step, : ids.shape[1]] = ids
        support = support.masked_fill(~mask[:, :, None], 0)
    tokens, logp = out.tokens[:longest].T.masked_fill(~mask, 0), out.logp[:longest].T.masked_fill(~mask, 0.0)
    heat = None if out.temperature is None else out.temperature[:longest].T.masked_fill(~mask, 1.0).contiguous()
    return Samples(tokens.contiguous(), mask, logp.contiguous(), support, ~out.done, heat)


def _join(parts: list[Samples], index: Tensor) -> Samples:
    """The blocks' rows in the caller's order, padded to the longest."""

    def cat(tensors: list[Tensor]) -> Tensor:
        size = [max(tensor.shape[axis] for tensor in tensors) for axis in range(1, tensors[0].ndim)]
        out = tensors[0].new_zeros((len(index), *size))
        start = 0
        for tensor in tensors:
            out[(slice(start, start + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
            start += len(tensor)
        return out[index]

    support, heat = (
        None if getattr(parts[0], name) is None else cat([getattr(part, name) for part in parts]) for name in ("support", "temperature")
    )
    tokens, mask, logp, truncated = (cat([getattr(part, name) for part in parts]) for name in ("tokens", "mask", "logp", "truncated"))
    return Samples(tokens, mask, logp, support, truncated, heat)


class _State:
    """The model's memory of B rows: its cache, which positions of it are padding, and the next position of each row."""

    def __init__(self, backbone: Backbone, cache: Any, visible: Tensor | None, position: Tensor, length: int, fast: FastDecoder | None):
        self.backbone, self.cache, self.position, self.length, self.fast = backbone, cache, position, length, fast
        self.visible = visible  # attention mask [B, …] over all positions there will be; None without padding

    def select(self, index: Tensor) -> None:
        """Keep (or repeat) these rows."""
        self.cache.batch_select_indices(index)
        self.position = self.position[index]
        if self.visible is not None:
            self.visible = self.visible[index]

    def advance(self, token: Tensor) -> Tensor:
        """[B, D] hidden state after one more token [B]."""
        self.length += 1
        mask = None if self.visible is None else self.visible[..., : self.length]
        if self.fast is not None:
            hidden = self.fast.step(token, self.position, self.cache, mask)
        else:
            hidden = self.backbone.decoder(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=self.position[:, None],
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        self.position = self.position + 1
        return hidden


def _prefill(backbone: Backbone, prompts: list[Sequence[int]], pad: int, steps: int, device: torch.device) -> tuple[Tensor, _State]:
    """The last hidden state [B, D] of each prompt, and the memory; equal prompts are computed once, padded on the left."""
    from quatrain.models.kv_cache import make_cache

    number: dict[tuple[int, ...], int] = {}
    unique = torch.tensor([number.setdefault(tuple(prompt), len(number)) for prompt in prompts], device=device)
    longest = max(map(len, number))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in number], device=device)
    lengths = torch.tensor([len(prompt) for prompt in number], device=device)
    visible = torch.arange(longest, device=device) >= longest - lengths[:, None]
    padded = not bool(visible.all())
    position = (visible.cumsum(-1) - 1).clamp_min(0)
    cache, plain = make_cache(backbone.model.config)
    with FastLinear() if is_onednn() and device.type == "cpu" else nullcontext():
        hidden = backbone.decoder(
            input_ids=ids,
            attention_mask=visible if padded else None,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    mask = torch.nn.functional.pad(visible, (0, steps), value=True) if padded else None
    additive = plain and backbone.model.config._attn_implementation in ("sdpa", "eager")
    if padded and additive:
        # [U, 1, 1, L]: what both attentions take as it is, so that no mask is built at every step.
        lowest = torch.finfo(hidden.dtype).min
        mask = torch.zeros(mask.shape, dtype=hidden.dtype, device=device).masked_fill(~mask, lowest)[:, None, None]
    fast = FastDecoder(backbone, longest + steps) if additive and fits(backbone) else None
    state = _State(backbone, cache, mask, lengths, longest, fast)
    state.select(unique)
    return hidden[unique], state
