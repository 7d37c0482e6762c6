"""A stand-in for the ``vllm`` module: its documented signatures, and an engine with its own copy of the weights.

As in vLLM (0.22 to 0.33): query, key and value are one tensor, gate and up another; a tied head is skipped when
weights are loaded; an unknown name is an error; keys and values of a prompt are kept until ``reset_prefix_cache``;
every request has its own generator; log-probabilities are raw or processed; as many actions are left by top-k as tie.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
OPTIONS = {
    "load_format", "dtype", "gpu_memory_utilization", "max_model_len", "max_logprobs", "logprobs_mode", "generation_config",
    "enable_prefix_caching", "worker_extension_cls", "seed", "tensor_parallel_size", "enforce_eager",
}  # fmt: skip


@dataclasses.dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        assert 0 <= self.temperature <= 2 and 0 < self.top_p <= 1 and self.top_k >= 0 and self.max_tokens >= 1
        assert self.detokenize or not self.stop, "stop strings are only supported when detokenize is True"
        assert self.seed is None or -(2**63) <= self.seed < 2**64
        if self.seed == -1:
            self.seed = None
        if 0 < self.temperature < 0.01:
            self.temperature = 0.01


@dataclasses.dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class Model:
    """The worker's model: weights under vLLM's names, the forward of the Hugging Face one."""

    def __init__(self, folder: str, dtype: str, plant: Plant):
        from transformers import AutoConfig, AutoModelForCausalLM

        self.plant, config = plant, AutoConfig.from_pretrained(folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(12345)
            self.inner = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()
        self.tied = config.tie_word_embeddings
        self.held: dict[str, Tensor] = {}
        for name, tensor in self.inner.named_parameters():
            fused, part = self.place(name)
            pieces = [dict(self.inner.named_parameters())[name.replace(part, one)] for one in FUSED[fused]] if fused else [tensor]
            self.held[name.replace(part, fused) if fused else name] = torch.cat([piece.detach() for piece in pieces]).clone()

    @staticmethod
    def place(name: str) -> tuple[str, str]:
        return next(((fused, part) for fused, parts in FUSED.items() for part in parts if part in name), ("", ""))

    def named_parameters(self):
        return iter(self.held.items())

    def load_weights(self, weights) -> set[str]:
        loaded, sizes = set(), {name: len(value) for name, value in self.inner.named_parameters()}
        for name, tensor in weights:
            self.plant.received.append(name)
            if self.tied and name == "lm_head.weight":
                continue
            fused, part = self.place(name)
            target = name.replace(part, fused) if fused else name
            before = sum(sizes[name.replace(part, one)] for one in FUSED[fused][: FUSED[fused].index(part)]) if fused else 0
            slot = self.held[target][before : before + len(tensor)]  # KeyError for a name that is not the model's
            if name not in self.plant.skip:
                loaded.add(target)
            if not self.plant.drop:
                slot.copy_(tensor)
        if self.plant.shuffle:
            self.held[self.plant.shuffle].copy_(self.held[self.plant.shuffle].roll(1, 0))
        return loaded

    def logits(self, ids: list[int]) -> Tensor:
        """[L, V]"""
        weights, sizes = {}, {name: len(value) for name, value in self.inner.named_parameters()}
        for name, tensor in self.held.items():
            fused = next((fused for fused in FUSED if fused in name), None)
            parts = [name.replace(fused, one) for one in FUSED[fused]] if fused else [name]
            weights |= dict(zip(parts, tensor.split([sizes[part] for part in parts]), strict=True))
        with torch.no_grad():
            return torch.func.functional_call(self.inner, weights, (torch.tensor([ids]),)).logits[0].float()


@dataclasses.dataclass
class Plant:
    """What a test hides in the engine, and what it saw."""

    drop: bool = False  # weights are taken and thrown away
    skip: tuple[str, ...] = ()  # names that load_weights overlooks
    shuffle: str = ""  # rows of this tensor end up in other places: the same sums
    blind: bool = False  # the engine gives no checksums
    raw: bool = False  # logprobs_mode is not honoured
    keep_cache: bool = False  # reset_prefix_cache does nothing
    abort: bool = False
    length_first: bool = False  # older versions look at the length before the last token
    received: list[str] = dataclasses.field(default_factory=list)
    params: list[SamplingParams] = dataclasses.field(default_factory=list)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


class LLM:
    plant = Plant()

    def __init__(self, model: str, **options: Any):
        from transformers import AutoTokenizer

        assert set(options) <= OPTIONS, set(options) - OPTIONS
        assert options["load_format"] == "dummy" and Path(model).is_dir() and not list(Path(model).glob("*.safetensors"))
        self.plant.options, self.options = options, options
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        room, name = options["worker_extension_cls"].rsplit(".", 1)
        worker = type("Worker", (getattr(importlib.import_module(room), name),), {})()
        worker.model_runner = SimpleNamespace(model=Model(model, options["dtype"], self.plant))
        self.worker, self.prefixes = worker, {}
        self.limit = options["max_model_len"] or worker.model_runner.model.inner.config.max_position_embeddings

    def collective_rpc(self, method: str, timeout: float | None = None, args: tuple = (), kwargs: dict | None = None) -> list:
        result = getattr(self.worker, method)(*args, **(kwargs or {}))
        return [{} if self.plant.blind and method == "quatrain_sums" else result]

    def reset_prefix_cache(self) -> bool:
        if not self.plant.keep_cache:
            self.prefixes.clear()
        return True

    def generate(self, prompts: list[dict], sampling_params: Any = None, *, use_tqdm: bool = True) -> list[SimpleNamespace]:
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        assert len(params) == len(prompts) and not use_tqdm
        return [self.one(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, params, strict=True)]

    def one(self, prompt: list[int], params: SamplingParams) -> SimpleNamespace:
        self.plant.params.append(params)
        assert (params.logprobs or 0) <= self.options["max_logprobs"] and len(prompt) < self.limit
        model = self.worker.model_runner.model
        scores = None
        if params.prompt_logprobs is not None:  # never from the prefix cache
            table = model.logits(prompt).log_softmax(-1)
            scores = [None, *({token: Logprob(table[i, token].item())} for i, token in enumerate(prompt[1:]))]
        if tuple(prompt) not in self.prefixes or params.prompt_logprobs is not None:
            self.prefixes[tuple(prompt)] = model.logits(prompt)[-1]
        generator = torch.Generator().manual_seed(params.seed) if params.seed is not None else None
        tokens, logprobs, reason = [], [], None
        while reason is None:
            logits = model.logits([*prompt, *tokens])[-1] if tokens else self.prefixes[tuple(prompt)]
            token, entry = self.draw(logits, params, generator)
            tokens.append(token)
            logprobs.append(entry)
            ended = token in (params.stop_token_ids or ())
            if len(tokens) >= params.max_tokens or len(prompt) + len(tokens) >= self.limit:
                reason = "stop" if ended and not self.plant.length_first else "length"
            elif ended:
                reason = "stop"
            text = self.tokenizer.decode(tokens, skip_special_tokens=params.skip_special_tokens) if params.detokenize else ""
            if any(stop in text for stop in params.stop or ()):
                reason = "stop"
        reason = "abort" if self.plant.abort else reason
        found = SimpleNamespace(token_ids=tokens, logprobs=logprobs if params.logprobs is not None else None, finish_reason=reason)
        return SimpleNamespace(prompt_token_ids=prompt, prompt_logprobs=scores, outputs=[found])

    def draw(self, logits: Tensor, params: SamplingParams, generator: torch.Generator | None) -> tuple[int, dict[int, Logprob]]:
        raw, z = logits.log_softmax(-1), logits
        if params.temperature > 0:
            z = z / params.temperature
            if params.top_k:
                z = z.masked_fill(z < z.topk(min(params.top_k, len(z))).values[-1], -torch.inf)
            if params.top_p < 1:
                ordered, index = z.sort()
                outside = ordered.softmax(-1).cumsum(-1) <= 1 - params.top_p
                outside[-1] = False
                z = z.scatter(0, index, ordered.masked_fill(outside, -torch.inf))
        processed = z.log_softmax(-1)
        noise = torch.empty_like(processed).exponential_(generator=generator) if params.temperature > 0 else torch.ones(())
        token = int((processed.exp() / noise).argmax())
        shown = raw if self.plant.raw or self.options["logprobs_mode"] == "raw_logprobs" else processed
        top = shown.topk(params.logprobs or 0).indices.tolist()
        return token, {one: Logprob(shown[one].item(), rank) for rank, one in enumerate([token, *top])}


def install(monkeypatch: Any) -> Plant:
    """Put the module in place for one test; what is planted in the engine is returned."""
    module = ModuleType("vllm")
    plant = Plant()
    module.LLM = type("LLM", (LLM,), {"plant": plant})
    module.SamplingParams = SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    return plant
