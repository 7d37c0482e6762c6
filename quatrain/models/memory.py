"""What a causal LM remembers of the rows that it continues: keys and values, and the next position of each row.

All rows end at the same place of the cache, shorter ones begin with padding: a step then writes one column. Rows may be
selected, repeated and joined by others; columns that are padding in every row are dropped.

Axes: S rows, L positions, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from quatrain.models.backbone import Backbone
from quatrain.models.fast_decode import FastDecoder
from quatrain.models.products import FastLinear, is_onednn

AHEAD = 32  # columns that a mask is made for in advance


class Memory:
    """S rows of ``length`` positions. ``position`` [S]: how many of them, at the end, a row has; its next token stands at that position.

    plain  the cache is ours, so that rows can be forked and joined; others can only be selected.
    limit  positions beyond it (of rows that have ended and not yet left) are not told to the model.
    """

    def __init__(self, backbone: Backbone, cache: Any, plain: bool, position: Tensor, length: int, limit: int):
        self.backbone, self.cache, self.plain, self.position, self.length, self.limit = backbone, cache, plain, position, length, limit
        self._highest = length - 1  # no row's position is above it
        self._mask: Tensor | None = None
        self._reach = 0  # columns that the mask covers; 0: it has to be made anew

    def __len__(self) -> int:
        return len(self.position)

    @property
    def additive(self) -> bool:
        """Whether attention takes a mask [S, 1, 1, L] that is added, so that none is built at every step."""
        return self.plain and self.backbone.model.config._attn_implementation in ("sdpa", "eager")

    def select(self, index: Tensor) -> None:
        """Keep (or repeat) these rows."""
        self.cache.batch_select_indices(index)
        self.position = self.position[index]
        if self._mask is not None:
            self._mask = self._mask[index]
        self._trim()

    def fork(self, index: Tensor) -> None:
        """Append copies of these rows."""
        if not self.plain:
            self.select(torch.cat([torch.arange(len(self), device=index.device), index]))
            return
        for layer in self.cache.layers:
            layer.fork(index)
        self.position = torch.cat([self.position, self.position[index]])
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask[index]])

    def join(self, other: Memory) -> None:
        """Append the rows of another memory; both are plain."""
        for layer, new in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.join(new.keys, new.values)
        self.position = torch.cat([self.position, other.position])
        self.length, self.limit, self._reach = max(self.length, other.length), max(self.limit, other.limit), 0
        self._highest, self._mask = max(self._highest, other._highest), None
        self._trim()

    def advance(self, token: Tensor, fast: FastDecoder | None) -> Tensor:
        """[S, D] hidden states after one more token [S]."""
        self.length += 1
        mask = self._visible()
        self._highest += 1
        position = self.position if self._highest < self.limit else self.position.clamp_max(self.limit - 1)
        if fast is not None:
            hidden = fast.step(token, position, self.cache, mask)
        else:
            hidden = self.backbone.decoder(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=position[:, None],
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        self.position = self.position + 1
        return hidden

    def _trim(self) -> None:
        if self.plain and len(self) and (empty := self.length - int(self.position.max())) > 0:
            for layer in self.cache.layers:
                layer.drop(empty)
            self.length, self._reach, self._mask = self.length - empty, 0, None

    def _visible(self) -> Tensor | None:
        """The mask over ``length`` columns for rows that have ``position + 1`` of them; None without padding."""
        if self._reach < self.length:
            self._reach = self.length + AHEAD
            empty = self.length - 1 - self.position
            hides = torch.arange(self._reach, device=empty.device) < empty[:, None]
            self._mask = None
            if bool((empty > 0).any()):
                self._mask = ~hides
                if self.additive:
                    kind = self.cache.layers[0].dtype
                    self._mask = torch.zeros(hides.shape, dtype=kind, device=hides.device)
                    self._mask = self._mask.masked_fill_(hides, torch.finfo(kind).min)[:, None, None]
        return None if self._mask is None else self._mask[..., : self.length]

    # -- keeping ---------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Copies of the keys, values and positions of a plain memory."""
        layers = [(layer.keys.contiguous().clone(), layer.values.contiguous().clone()) for layer in self.cache.layers]
        return {"layers": layers, "position": self.position.clone(), "length": self.length, "limit": self.limit}

    @classmethod
    def load(cls, backbone: Backbone, state: dict[str, Any]) -> Memory:
        from quatrain.models.kv_cache import make_cache

        cache, plain = make_cache(backbone.model.config)
        device = backbone.head.weight.device
        for index, (keys, values) in enumerate(state["layers"]):
            cache.update(keys.to(device).clone(), values.to(device).clone(), index)
        return cls(backbone, cache, plain, state["position"].to(device), state["length"], state["limit"])


def prefill(
    backbone: Backbone, prompts: Sequence[Sequence[int]], pad: int, limit: int, fast: FastDecoder | None = None
) -> tuple[Tensor, Memory]:
    """The last hidden state [S, D] of each prompt and the memory of them, padded on the left with the token ``pad``."""
    from quatrain.models.kv_cache import make_cache

    device, longest = backbone.head.weight.device, max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    visible = torch.arange(longest, device=device) >= longest - lengths[:, None]
    position, uneven = (visible.cumsum(-1) - 1).clamp_min(0), min(map(len, prompts)) < longest
    cache, plain = make_cache(backbone.model.config)
    if fast is not None:
        hidden = fast.begin(ids, position, cache, _before(visible, backbone.head.weight.dtype) if uneven else None)
    else:
        with FastLinear() if is_onednn() and device.type == "cpu" else nullcontext():
            hidden = backbone.decoder(
                input_ids=ids, attention_mask=visible if uneven else None, position_ids=position, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
    return hidden, Memory(backbone, cache, plain, lengths, longest, limit)


def _before(visible: Tensor, kind: torch.dtype) -> Tensor:
    """The mask [S, 1, L, L] that is added, for rows of which ``visible`` [S, L] is real: each position sees those up to it."""
    sees = torch.ones(visible.shape[1], visible.shape[1], dtype=torch.bool, device=visible.device).tril() & visible[:, None, None]
    return torch.zeros(sees.shape, dtype=kind, device=visible.device).masked_fill_(~sees, torch.finfo(kind).min)
