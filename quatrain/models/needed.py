"""The feed-forward part of the last layer at the positions that are read, and nowhere else.

It looks at one position at a time, and nothing after it at another: of a prompt only the last token's is ever read, of padding none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MOST = 0.9  # of the positions: with more of them to compute, picking them costs what it saves


@contextmanager
def only_at(decoder: nn.Module, index: Tensor, positions: int) -> Iterator[None]:
    """Within it the hidden states of a Llama-shaped decoder are those of ``index`` [M] alone, of so many flattened positions.

    The others are finite and mean nothing. ``index`` may name a position several times.
    """
    read = torch.unique(index)
    if len(read) > MOST * positions or decoder._compiled_call_impl is not None:  # hooks that come and go are compiled anew each time
        yield
        return
    part, shape = decoder.layers[-1].mlp, torch.Size()

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        nonlocal shape
        shape = args[0].shape
        return (args[0].flatten(0, -2).index_select(0, read),)

    def place(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return out.new_zeros(positions, out.shape[-1]).index_copy(0, read, out).view(shape)

    hooks = part.register_forward_pre_hook(pick), part.register_forward_hook(place)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
