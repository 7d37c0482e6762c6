"""Rows that begin alike are computed once: the samples of a prompt as one tree of their common prefixes.

Every distinct prefix is a node. A tree's nodes stand in one row of the model's input, each at its own depth as position
and seeing its ancestors alone, so that its hidden state is the one that it has in every sample through it. A group of
samples shares its prompt, and what they say alike before they part; equal samples cost nothing at all. Small trees stand
beside each other in one row, which no node notices: a row is as wide as the widest tree, and little of it is padding.

Axes: N rows (samples), L positions, U nodes, B rows of trees, W nodes of the fullest.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from quatrain.models.backbone import Backbone
from quatrain.models.draws import uniforms

SHAPES = {"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"}
GAIN = 0.8  # a tree is used where its operations are at most this part of the rows'
MASK_ELEMENTS = 2**24  # of [B, W, W], at most
_verified: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Trees:
    """ids, position [B, W]: the nodes' tokens and depths (0 in padding); sees [B, 1, W, W] bool; place [N, L]: where in the
    flattened [B·W] each position of each row is (0 in padding)."""

    ids: Tensor
    position: Tensor
    sees: Tensor
    place: Tensor


def grow(ids: Tensor, length: Tensor, shared: Tensor, cost: Any) -> Trees | None:
    """The trees of rows ids [N, L] of which the first ``length`` [N] are real, one for each distinct beginning of ``shared`` [N] tokens.

    ``cost(rows, positions)`` weighs an input of that shape. None where trees would not be cheaper.
    """
    count, longest = ids.shape
    if count < 2 or int(shared.min()) < 1:
        return None
    depth = torch.arange(longest, device=ids.device)
    real = depth < length[:, None]
    # A prefix is known by the sum of a hash of its tokens and their depths (mod 2^64); checked below, token by token.
    mixed = (uniforms(ids.flatten() * longest + depth.repeat(count), depth[:1]) * 2.0**52).long().view(count, longest)
    mixed = (mixed * -7046029254386353131 ^ (mixed >> 29)).cumsum(1)
    start = mixed.gather(1, shared[:, None] - 1)[:, 0] + shared * -7723592293110705685
    _, tree = torch.unique(start, return_inverse=True)
    if int(tree.max()) + 1 == count:
        return None
    key, node = torch.unique((mixed + (tree[:, None] + 1) * -4658895280553007687)[real], return_inverse=True)
    rows, steps = real.nonzero(as_tuple=True)
    first = torch.full((len(key),), len(rows), device=ids.device).scatter_reduce_(
        0, node, torch.arange(len(rows), device=ids.device), "amin"
    )
    owner, level = rows[first], steps[first]  # of each node: a row through it, and its depth
    tree = torch.tensor(_packed(torch.bincount(tree[owner]).tolist()), device=ids.device)[tree]
    home = tree[owner]
    sizes = torch.bincount(home)
    trees, width = len(sizes), int(sizes.max())
    if cost(trees, width) > GAIN * cost(count, longest) or trees * width * width > MASK_ELEMENTS:
        return None
    order = torch.argsort(home * longest + level, stable=True)  # by row, parents before children
    local = torch.empty_like(order)
    local[order] = torch.arange(len(order), device=ids.device) - (sizes.cumsum(0) - sizes)[home[order]]
    path = torch.full((count, longest), -1, device=ids.device)
    path[rows, steps] = local[node]
    spot = home * width + local
    flat = torch.zeros(trees * width, dtype=torch.long, device=ids.device)
    tokens, position = flat.clone().index_copy_(0, spot, ids[owner, level]), flat.clone().index_copy_(0, spot, level)
    through = flat.clone().index_copy_(0, spot, owner).view(trees, width)
    position, own = position.view(trees, width), torch.arange(width, device=ids.device)
    # j is an ancestor of i (or i itself) if the row through i is at j in j's depth, and j is no deeper than i.
    along = path.int()[through].gather(2, position[:, None, :].expand(-1, width, -1))
    sees = (along == own) & (position[:, None, :] <= position[:, :, None]) & (own < sizes[:, None, None])
    sees |= torch.eye(width, dtype=torch.bool, device=ids.device)  # padding sees itself
    place = (path + tree[:, None] * width).masked_fill(~real, 0)
    found = Trees(tokens.view(trees, width), position, sees[:, None], place)
    return found if _faithful(found, ids, real, path) else None


def _packed(sizes: list[int]) -> list[int]:
    """Which row each tree of that many nodes stands in: the largest first, each where most room is left, in rows of the widest tree.

    >>> _packed([3, 7, 4, 2])
    [1, 0, 1, 2]
    """
    width, rows, found = max(sizes), [], [0] * len(sizes)  # rows: a heap of (− what is left, number)
    for tree in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        left, row = heapq.heappop(rows) if rows and -rows[0][0] >= sizes[tree] else (-width, len(rows))
        heapq.heappush(rows, (left + sizes[tree], row))
        found[tree] = row
    return found


def _faithful(trees: Trees, ids: Tensor, real: Tensor, path: Tensor) -> bool:
    """Every row reads its own tokens at its own depths, and one parent leads to each node: no two hashes were equal by chance."""
    depth = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    tokens, position = trees.ids.flatten()[trees.place], trees.position.flatten()[trees.place]
    parent = torch.full((trees.ids.numel(),), -1, device=ids.device)
    before = torch.cat([torch.full_like(path[:, :1], -2), path[:, :-1]], 1)
    parent[trees.place[real]] = before[real]
    same = (tokens == ids) & (position == depth) & (parent[trees.place] == before)
    return bool(same[real].all())


def hidden_of(backbone: Backbone, trees: Trees) -> Tensor:
    """[B, W, D] hidden states of the nodes."""
    dtype = backbone.head.weight.dtype
    mask = torch.zeros(trees.sees.shape, dtype=dtype, device=trees.ids.device).masked_fill_(~trees.sees, torch.finfo(dtype).min)
    out = backbone.decoder(input_ids=trees.ids, attention_mask=mask, position_ids=trees.position, use_cache=False)
    return out.last_hidden_state


def cost_of(backbone: Backbone) -> Any:
    """(rows, positions) → multiplications of a forward: matrices, and attention with its square."""
    config = backbone.model.config.get_text_config(decoder=True)
    matrices = sum(parameter.numel() for layer in backbone.decoder.layers for parameter in layer.parameters())
    # Attention's small products and their softmax run several times slower than the large ones.
    attention = 8 * config.num_hidden_layers * config.num_attention_heads * getattr(config, "head_dim", 64)
    return lambda rows, positions: rows * positions * (matrices + attention * positions)


def fits(backbone: Backbone) -> bool:
    """Whether this model can be given its attention as a mask: by shape, and by its hidden states on a small tree."""
    decoder = backbone.decoder
    if type(decoder).__name__ not in SHAPES or not type(decoder).__module__.startswith("transformers."):
        return False
    if decoder.training or decoder._forward_hooks or decoder._forward_pre_hooks:  # checkpointed, sharded or watched
        return False
    config = backbone.model.config.get_text_config(decoder=True)
    full = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ()) and not getattr(
        config, "sliding_window", None
    )
    if not full or config._attn_implementation not in ("sdpa", "eager"):
        return False
    if decoder not in _verified:
        _verified[decoder] = _equal(backbone)
    return _verified[decoder]


def _equal(backbone: Backbone) -> bool:
    """Three rows of four tokens with a common beginning, as rows and as a tree."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 0, 4]], device=backbone.head.weight.device) % backbone.vocabulary
    four, two = torch.full((3,), 4, device=ids.device), torch.full((3,), 2, device=ids.device)
    with torch.no_grad():
        trees = grow(ids, four, two, lambda rows, positions: rows)
        plain = backbone.hidden(ids)
        shared = hidden_of(backbone, trees).flatten(0, 1)[trees.place]
    return bool((plain - shared).abs().max() <= 1e-4 * plain.abs().max().clamp_min(1.0))
