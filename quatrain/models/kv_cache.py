"""A key/value cache for sampling: grows by half instead of by one; its rows are selected, repeated, forked and joined.

It is a Hugging Face ``Cache``, so any model that takes one uses it. Models whose layers are not all full attention
(sliding windows, recurrent states) get Hugging Face's own cache, or near it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer


class GrowingLayer(DynamicLayer):
    """Keys and values [B, H, L, D] are views of buffers [rows, H, capacity, D]; a step writes one position and copies nothing."""

    _buffers: tuple[Tensor, Tensor] | None = None
    _begin = 0
    _end = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows, more = len(key_states), key_states.shape[2]
        if self._buffers is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._buffers = (key_states.contiguous(), value_states.contiguous())
        else:
            if self._end + more > self._buffers[0].shape[2]:
                self._move(None, len(self._buffers[0]), more)
            keys, values = self._buffers
            keys[:rows, :, self._end : self._end + more] = key_states
            values[:rows, :, self._end : self._end + more] = value_states
        self._end += more
        self._view(rows)
        return self.keys, self.values

    def _view(self, rows: int) -> None:
        keys, values = self._buffers
        if rows < len(keys):
            keys, values = keys[:rows], values[:rows]
        length = self._end - self._begin
        self.keys, self.values = keys.narrow(2, self._begin, length), values.narrow(2, self._begin, length)

    @torch.inference_mode(False)  # buffers outlive a step in inference mode, and are written outside of it
    def _move(self, rows: Tensor | None, room: int, more: int = 1, before: int = 0) -> None:
        """To larger buffers with room for that many rows, keeping the given ones (None: all), after so many empty positions."""
        grown = []
        for old in (self.keys, self.values):
            kept = old if rows is None else old.index_select(0, rows)
            length = before + kept.shape[2]
            new = kept.new_empty((room, kept.shape[1], length + max(16, length // 2, more), kept.shape[3]))
            new[: len(kept), :, :before] = 0
            new[: len(kept), :, before:length] = kept
            grown.append(new)
        self._buffers, self._begin, self._end = (grown[0], grown[1]), 0, length

    def get_seq_length(self) -> int:
        return self._end - self._begin

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(len(self.keys), device=self.keys.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._move(indices, len(indices))
        self._view(len(indices))

    def drop(self, count: int) -> None:
        """Forget the first positions of every row."""
        self._begin += count
        self._view(len(self.keys))

    def fork(self, indices: Tensor) -> None:
        """Append copies of these rows; nothing else is copied while there is room."""
        rows, more = len(self.keys), len(indices)
        if rows + more > len(self._buffers[0]):
            self._move(None, rows + max(more, rows // 2))
        for buffer in self._buffers:
            buffer[rows : rows + more, :, self._begin : self._end] = buffer[:rows, :, self._begin : self._end].index_select(0, indices)
        self._view(rows + more)

    def join(self, keys: Tensor, values: Tensor) -> None:
        """Append rows of another cache so that the last positions of both stand together; what is missing before them is zero."""
        rows, more, length = len(self.keys), len(keys), keys.shape[2]
        before = max(0, length - self.get_seq_length())
        if before or rows + more > len(self._buffers[0]):
            self._move(None, max(rows + more, len(self._buffers[0])), before=before)
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            # Zero and not anything: what is masked counts 0 times its value, and 0 · NaN is NaN.
            buffer[rows : rows + more, :, self._begin : self._end - length] = 0
            buffer[rows : rows + more, :, self._end - length : self._end] = new
        self._view(rows + more)


class RecurrentLayer(LinearAttentionLayer):
    """The state of a recurrent layer, whose rows can be selected."""

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)


def make_cache(config: Any) -> tuple[DynamicCache, bool]:
    """(a cache for a model of that configuration, whether all its layers are plain full attention)."""
    cache = DynamicCache(config=config)
    plain = not cache.layers or all(type(layer) is DynamicLayer for layer in cache.layers)
    if plain:
        cache.layers = [GrowingLayer() for _ in cache.layers]
        cache.layer_class_to_replicate = None if cache.layers else GrowingLayer
    cache.layers = [RecurrentLayer(layer.number_of_states) if type(layer) is LinearAttentionLayer else layer for layer in cache.layers]
    return cache, plain
