"""A tiny masked-diffusion policy, built in memory."""

from __future__ import annotations

from typing import Any

import torch

from quatrain.models.masked_diffusion import MaskedDiffusionLM
from quatrain.models.unmasking import Unmasking
from tests.tiny_models import tiny_model, tiny_tokenizer


def diffusion(
    canvas: int = 6, block: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 10.0, **options: Any
) -> MaskedDiffusionLM:
    """Random weights, logits far from uniform; ``options``: other fields of Unmasking."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    model = tiny_model(vocabulary=len(tokenizer), seed=seed, dtype=dtype, scale=scale)
    return MaskedDiffusionLM(model, tokenizer, Unmasking(canvas, block, options.pop("steps", canvas), **options))
