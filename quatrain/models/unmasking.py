"""From a canvas of masks to a text: positions are filled in, a few per forward, block by block.

Axes: N rows, C positions of the canvas, B of a block, V vocabulary. Nothing here has a state: what a row draws at a position and a
step is a function of the row's seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.models.draws import draw, uniforms
from quatrain.protocols import Sampling

Logits = Callable[[Tensor, Tensor, slice], Tensor]  # (rows [n], their canvas [n, C], positions) → logits [n, B, V]


@dataclass(frozen=True)
class Unmasking:
    """How a canvas is filled: Nie et al. 2025 (LLaDA), §2.4 and appendix B.

    canvas  C, positions of an answer; what follows its end is filled with the end.
    block   positions per block, a divisor of the canvas: blocks are filled from left to right, the masks after them in sight.
            → left to right for 1; → one block, any order, for C.
    steps   forwards for a whole canvas, a multiple of the number of blocks: as many positions are filled in each.
    order   ``confidence``: a token is drawn for every masked position and the likeliest are kept; ``random``: any of them.
    """

    canvas: int = 12
    block: int = 4
    steps: int = 12
    order: Literal["confidence", "random"] = "confidence"

    def __post_init__(self) -> None:
        if self.canvas < 1 or self.block < 1 or self.canvas % self.block:
            raise QuatrainError("a canvas is made of whole blocks", given=f"canvas={self.canvas}, block={self.block}")
        blocks = self.canvas // self.block
        if self.steps % blocks or not blocks <= self.steps <= self.canvas:
            raise QuatrainError(
                "every block takes the same number of steps, one to one per position",
                given=f"steps={self.steps}",
                expected=f"a multiple of {blocks}, at most {self.canvas}",
            )
        if self.order not in ("confidence", "random"):
            raise QuatrainError("unknown order of unmasking", given=self.order, expected="confidence or random")


def unmask(logits: Logits, plan: Unmasking, sampling: Sampling, seeds: Tensor, mask: int, end: int) -> Tensor:
    """[N, C] int64: sampled canvases, one per seed [N]. A row is finished with the block that holds its first end.

    mask, end  ids of the mask and of the end-of-sequence token. The logits of the mask are −inf: it is never drawn.
    """
    canvas = torch.full((len(seeds), plan.canvas), mask, device=seeds.device)
    live = torch.arange(len(seeds), device=seeds.device)
    each = plan.steps * plan.block // plan.canvas  # steps of a block
    for block in range(plan.canvas // plan.block):
        span = slice(block * plan.block, (block + 1) * plan.block)
        for step in range(each):
            here = canvas[live]
            z = logits(live, here, span)
            counter = 2 * plan.block * (block * each + step) + torch.arange(2 * plan.block, device=seeds.device)
            uniform = uniforms(seeds[live], counter)
            token, logp, _ = draw(z.flatten(0, 1), uniform[:, : plan.block].flatten(), sampling)
            preference = logp.view(len(live), -1).double() if plan.order == "confidence" else uniform[:, plan.block :]
            preference = preference.masked_fill(here[:, span] != mask, float("-inf"))
            number = plan.block * (step + 1) // each - plan.block * step // each
            chosen = preference.topk(number, 1).indices
            here[:, span] = here[:, span].scatter(1, chosen, token.view(len(live), -1).gather(1, chosen))
            canvas[live] = here
        finished = (canvas[live, : span.stop] == end).any(1)
        canvas[live[finished], span.stop :] = end
        live = live[~finished]
        if not len(live):
            break
    return canvas
