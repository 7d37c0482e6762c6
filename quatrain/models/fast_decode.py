"""One decoding step of small Llama-shaped models in few large operations.

For a model of a few million parameters a step through Hugging Face's modules is mostly overhead: some two hundred small
operations. Here projections are joined, the scales of the norms folded into the matrices that follow them, and the
rotary tables made once per call. Used only where ``fits`` says so and only after its hidden states have been compared
with the model's own; every other model goes through its own forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from quatrain.models.backbone import Backbone
from quatrain.models.products import Matrix

LARGEST = 50_000_000  # parameters: beyond, joined copies of the matrices cost more than the overhead they save
_SHAPES = {"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"}
_verified: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Layer:
    qkv: Matrix  # [(Hq + 2·Hk)·D, hidden], input norm folded in; without head_scale also attention's scaling, in the queries
    qkv_bias: Tensor | None
    head_scale: Tensor | None  # [Hq + Hk, D]: weights of the query and key norms (Qwen3), attention's scaling in the queries'
    head_eps: Tensor  # √(eps·D), as ``_over_rms`` takes it
    out: Matrix  # [hidden, Hq·D]
    gate_up: Matrix  # [2·F, hidden], norm folded in
    down: Matrix  # [hidden, F]
    eps: tuple[Tensor, Tensor]
    activation: Any


class FastDecoder:
    """The weights as they are now (a copy), and rotary tables for ``positions`` positions."""

    def __init__(self, backbone: Backbone, positions: int):
        decoder = backbone.decoder
        self.embedding = decoder.embed_tokens.weight
        attention = decoder.layers[0].self_attn
        self.size = attention.head_dim
        self.queries, self.keys = attention.q_proj.out_features // self.size, attention.k_proj.out_features // self.size
        self.layers = [self._layer(layer) for layer in decoder.layers]
        self.scale, self.eps = decoder.norm.weight * self.embedding.shape[1] ** 0.5, self._floor(decoder.norm)
        self.backbone, self.positions = backbone, 0
        self.reach(positions)

    def reach(self, positions: int) -> None:
        """Make the rotary tables long enough for that many positions."""
        if positions <= self.positions:
            return
        self.positions = positions
        place = torch.arange(positions, device=self.embedding.device)[None]
        cos, sin = self.backbone.decoder.rotary_emb(self.embedding[:1, None], place)
        half = self.size // 2
        # rotate_half(x)·sin is x with its halves swapped, times sin with its first half negated.
        self.rotary = torch.stack([cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)], 1)[:, :, None]  # [positions, 2, 1, D]

    def _floor(self, norm: nn.Module) -> Tensor:
        weight = norm.weight
        return weight.new_tensor((norm.variance_epsilon * len(weight)) ** 0.5)

    def _layer(self, layer: nn.Module) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        root = len(before.weight) ** 0.5
        qkv = torch.cat([part.weight for part in parts]) * (before.weight * root)
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        head_scale, head_eps = None, self._floor(before)
        if hasattr(attention, "q_norm"):
            head_eps = self._floor(attention.q_norm)
            queries, keys = attention.q_norm.weight * attention.scaling, attention.k_norm.weight
            head_scale = torch.cat([queries.expand(self.queries, -1), keys.expand(self.keys, -1)]) * self.size**0.5
        else:
            for joined in (qkv,) if bias is None else (qkv, bias):
                joined[: self.queries * self.size] *= attention.scaling
        return _Layer(
            qkv=Matrix(qkv),
            qkv_bias=bias,
            head_scale=head_scale,
            head_eps=head_eps,
            out=Matrix(attention.o_proj.weight),
            gate_up=Matrix(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * (after.weight * root)),
            down=Matrix(mlp.down_proj.weight),
            eps=(self._floor(before), self._floor(after)),
            activation=mlp.act_fn.forward,  # a module's call looks for hooks, and there are none
        )

    @torch.inference_mode()  # a seventh of a step of few rows is what autograd notes of operations that it will not differentiate
    def step(self, token: Tensor, position: Tensor, cache: Any, mask: Tensor | None) -> Tensor:
        """[B, hidden] after one more token [B] at position [B]; mask [B, 1, 1, L + 1] additive or None."""
        rows, groups, size = len(token), len(token) * self.keys, self.size
        x = self.embedding.index_select(0, token)
        cos, sin = self.rotary.index_select(0, position).unbind(1)
        for layer, memory in zip(self.layers, cache.layers, strict=True):
            query, key, value = self._attended(layer, x, cos, sin)
            key, value = memory.update(key.unsqueeze(2), value.unsqueeze(2))
            # One query per row: two batched products take half the time of the kernel that is made for long queries. Query
            # heads that share a key head become its queries.
            weight = torch.bmm(query.reshape(groups, -1, size), key.flatten(0, 1).mT)
            if mask is not None:
                weight.view(rows, self.keys, -1, weight.shape[-1]).add_(mask)
            seen = torch.bmm(weight.softmax(-1), value.flatten(0, 1))
            x = self._rest(layer, x, seen.view(rows, -1))
        return _over_rms(x, self.eps).mul_(self.scale)

    @torch.no_grad()
    def begin(self, ids: Tensor, position: Tensor, cache: Any, mask: Tensor | None) -> Tensor:
        """[B, hidden] after the last of ids [B, L] at position [B, L]; mask [B, 1, L, L] additive, None: each sees those before it.

        What only earlier positions would need of the last layer is not computed: of them it keeps keys and values alone.
        """
        rows, length = ids.shape
        x = self.embedding.index_select(0, ids.flatten())
        cos, sin = self.rotary.index_select(0, position.flatten()).unbind(1)
        for layer, memory in zip(self.layers, cache.layers, strict=True):
            query, key, value = (part.unflatten(0, (rows, length)).transpose(1, 2) for part in self._attended(layer, x, cos, sin))
            memory.update(key, value)
            one = layer is self.layers[-1]
            if one:
                query, x, mask = query[:, :, -1:], x.view(rows, length, -1)[:, -1], None if mask is None else mask[:, :, -1:]
            seen = scaled_dot_product_attention(
                query, key, value, mask, is_causal=mask is None and not one, scale=1.0, enable_gqa=self.queries > self.keys
            )
            x = self._rest(layer, x, seen.transpose(1, 2).reshape(len(x), -1))
        return _over_rms(x, self.eps).mul_(self.scale)

    def _attended(self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries [M, Hq, D] and keys [M, Hk, D], and values [M, Hk, D], of x [M, hidden]; cos, sin [M, 1, D]."""
        qkv = layer.qkv(_over_rms(x, layer.eps[0]))
        if layer.qkv_bias is not None:
            qkv = qkv.add_(layer.qkv_bias)
        qk, value = qkv.view(len(x), -1, self.size).split((self.queries + self.keys, self.keys), 1)
        if layer.head_scale is not None:
            qk = _over_rms(qk, layer.head_eps).mul_(layer.head_scale)
        turned = torch.addcmul(qk * cos, qk.roll(self.size // 2, -1), sin)
        return *turned.split((self.queries, self.keys), 1), value

    def _rest(self, layer: _Layer, x: Tensor, seen: Tensor) -> Tensor:
        """What follows attention: its output and the feed-forward part, each added to x."""
        x = layer.out(seen, x)
        gate, up = layer.gate_up(_over_rms(x, layer.eps[1])).chunk(2, -1)
        return layer.down(layer.activation(gate).mul_(up), x)


def _over_rms(x: Tensor, floor: Tensor) -> Tensor:
    """x over √(Σx² + floor²) along the last axis of n: with floor = √(n·eps) that is RMSNorm but for its weight and √n."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


def fits(backbone: Backbone) -> bool:
    """Whether the fast step computes this model: shape and size, plain modules without hooks, and equal hidden states."""
    decoder = backbone.decoder
    if type(decoder).__name__ not in _SHAPES or not type(decoder).__module__.startswith("transformers."):
        return False
    if sum(parameter.numel() for parameter in decoder.parameters()) > LARGEST or backbone.head.weight.dtype not in (
        torch.float32,
        torch.float64,
    ):
        return False
    for module in decoder.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return False
    linear = [getattr(part, name) for layer in decoder.layers for part, names in _linear(layer) for name in names]
    if any(type(module) is not nn.Linear for module in linear):
        return False
    if backbone.model.config._attn_implementation not in ("sdpa", "eager"):  # others may see less than everything before
        return False
    if any(layer.self_attn.o_proj.bias is not None or layer.mlp.gate_proj.bias is not None for layer in decoder.layers):
        return False
    if decoder not in _verified:
        _verified[decoder] = _equal(backbone)
    return _verified[decoder]


def _linear(layer: nn.Module) -> tuple[tuple[nn.Module, tuple[str, ...]], ...]:
    return (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")), (layer.mlp, ("gate_proj", "up_proj", "down_proj"))


def _equal(backbone: Backbone) -> bool:
    """A prompt of three tokens and two steps after it, beside the model's own forward on all five."""
    from quatrain.models.kv_cache import make_cache

    cache, plain = make_cache(backbone.model.config)
    if not plain:
        return False
    ids, place = (torch.arange(5, device=backbone.head.weight.device)[None] % count for count in (backbone.vocabulary, 5))
    with torch.no_grad():
        expected = backbone.hidden(ids)[0, 2:]
        fast = FastDecoder(backbone, 5)
        ours = [fast.begin(ids[:, :3], place[:, :3], cache, None), *(fast.step(ids[:, i], place[:, i], cache, None) for i in (3, 4))]
    ours = torch.cat(ours)
    return bool((ours - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1.0))
