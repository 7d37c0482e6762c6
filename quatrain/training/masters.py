"""AdamW for weights of 16 bits: the sum of small steps is kept in 32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class MasterAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` that steps fp32 masters of 16-bit parameters and rounds them back; others are stepped as they are.

    bfloat16 has 8 bits of mantissa: a relative change below 1/256 is lost, and steps of a usual learning rate are smaller by far.
    Call ``gather`` after the backward pass and before gradients are clipped.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **options: Any):
        self.pairs = [(own, own if own.dtype.itemsize > 2 else own.detach().float().requires_grad_()) for own in parameters]
        super().__init__([master for _, master in self.pairs], **options)

    def gather(self) -> None:
        """Hand the parameters' gradients to their masters."""
        for own, master in self.pairs:
            if own is not master:
                master.grad, own.grad = None if own.grad is None else own.grad.float(), None

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.publish()
        return loss

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters back into the parameters: after a step, and after whatever else moves the masters."""
        for own, master in self.pairs:
            if own is not master:
                own.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for own, _ in self.pairs:
            own.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masters": [master.detach() for own, master in self.pairs if own is not master]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "masters"})
        masters = [master for own, master in self.pairs if own is not master]
        for master, saved in zip(masters, state_dict["masters"], strict=True):
            master.copy_(saved)
