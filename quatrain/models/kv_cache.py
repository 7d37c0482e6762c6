"""A key/value cache for sampling: grows by half instead of by one, repeats and selects rows.

It is a Hugging Face ``Cache``, so any model that takes one uses it. Models whose layers are not all full attention
(sliding windows, recurrent states) get Hugging Face's own cache instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values [B, H, L, D] are views of buffers [B, H, capacity, D]; a step writes one position and copies nothing."""

    _buffers: tuple[Tensor, Tensor] | None = None
    _length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self._length = self._length, self._length + key_states.shape[2]
        if self._buffers is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._buffers = (key_states.contiguous(), value_states.contiguous())
        else:
            if self._length > self._buffers[0].shape[2]:
                self._grow(None)
            for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[:, :, start : self._length] = new
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)
        return self.keys, self.values

    def _grow(self, rows: Tensor | None) -> None:
        """Move to larger buffers, keeping the given rows (all of them for None)."""
        grown = []
        for old in (self.keys, self.values):
            kept = old if rows is None else old.index_select(0, rows)
            new = kept.new_empty((len(kept), kept.shape[1], self._length + max(16, self._length // 2), kept.shape[3]))
            new[:, :, : kept.shape[2]] = kept
            grown.append(new)
        self._buffers = (grown[0], grown[1])

    def get_seq_length(self) -> int:
        return self._length

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(len(self.keys), device=self.keys.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._grow(indices)
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)


def make_cache(config: Any) -> tuple[DynamicCache, bool]:
    """(a cache for a model of that configuration, whether all its layers are plain full attention)."""
    cache = DynamicCache(config=config)
    plain = not cache.layers or all(type(layer) is DynamicLayer for layer in cache.layers)
    if plain:
        cache.layers = [GrowingLayer() for _ in cache.layers]
        cache.layer_class_to_replicate = None if cache.layers else GrowingLayer
    return cache, plain
