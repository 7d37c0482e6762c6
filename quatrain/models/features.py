"""What a policy's own forward pass says of a trajectory: its hidden states, and how sure it was. Axes: N rows, T actions, D hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.models.backbone import Backbone
from quatrain.models.scorer import contiguous

QUANTILES = (0.1, 0.5, 0.9)


def hidden_features(backbone: Backbone, batch: Batch, role: str = "policy", layers: int = 1) -> Tensor:
    """[N, 2·layers·D]: hidden states at the prompt's last token, and their mean over the actions' own positions (0 without actions).

    layers  how many, counted from the last.
    """
    rows = contiguous(batch, role)
    hidden = backbone.last_layers(rows.ids, layers)
    prompt = hidden[torch.arange(len(batch), device=batch.device), rows.prompts - 1]
    acted = torch.zeros(rows.ids.numel(), dtype=hidden.dtype, device=batch.device)
    acted[rows.index + 1] = 1  # an action stands one place after the one that it was predicted from
    acted = acted.view(rows.ids.shape)
    pooled = torch.einsum("nl,nld->nd", acted, hidden) / acted.sum(1, keepdim=True).clamp(min=1)
    return torch.cat([prompt, pooled], 1)


def row_statistics(value: Tensor, mask: Tensor, quantiles: tuple[float, ...] = QUANTILES) -> Tensor:
    """[N, 2 + Q]: mean, standard deviation and quantiles of each row of ``value`` [N, T] where ``mask``; 0 where nothing is.

    >>> row_statistics(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]), (0.5,)).tolist()
    [[2.0, 1.0, 2.0]]
    """
    inside, count = torch.where(mask, value, 0.0), mask.sum(1, keepdim=True).clamp(min=1)
    mean = inside.sum(1, keepdim=True) / count
    deviation = (torch.where(mask, value - mean, 0.0).square().sum(1, keepdim=True) / count).sqrt()
    levels = torch.tensor(quantiles, dtype=value.dtype, device=value.device)
    middle = torch.nanquantile(torch.where(mask, value, torch.nan), levels, dim=1).T.nan_to_num(0.0)
    return torch.cat([mean, deviation, middle], 1)
