"""A language model that is trained here and sampled by vLLM: in the same process, on the same GPU.

vLLM gets the weights whenever they have changed, and is not believed: what it holds is summed, a fixed prompt is
scored on both sides, and so is every batch that it samples. Written against vLLM 0.22 to 0.33: ``LLM(model, …)``,
``LLM.generate(prompts, sampling_params, use_tqdm)``, ``LLM.collective_rpc(method, timeout, args, kwargs)``,
``LLM.reset_prefix_cache()``, ``SamplingParams``, ``worker_extension_cls``, ``logprobs_mode``.

Axes: N rows, T actions, K support, V vocabulary.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, Origin
from quatrain.engines.vllm_worker import Sums
from quatrain.engines.weights import differing, exported, recorded
from quatrain.errors import QuatrainError
from quatrain.models.causal_lm import CausalLM
from quatrain.models.draws import truncates
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from quatrain.training.batching import scored

MAX_TOP_K = 256  # widest support that is asked back from the engine, action by action
TIES = 32  # vLLM keeps every action as likely as the k-th, and 16-bit logits are often equal
UNCOVERED = 1e-3  # mass that may be missing from the support that came back
PROBE = 32  # tokens of the fixed prompt
TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}  # mean |Δ log-probability|, nats; kernels differ
TOLERANCE_16 = 0.2  # in 16 bits


class VLLMCausalLM(CausalLM):
    """A CausalLM whose ``sample`` is vLLM's; everything else (scoring, cloning, saving) is the trained module's own.

    policy   the model to train; its module and tokenizer are shared, not copied.
    engine   a ``vllm.LLM`` started by ``start``.
    context  the longest sequence the engine takes, None: the model's own.
    tokens   padded positions that are scored at once.
    tolerance  nats by which mean log-probabilities of engine and trainer may differ; None: by the weights' dtype.

    ``gap`` is the mean |log-probability of the engine − of the trainer| in the last batch.
    """

    def __init__(self, policy: CausalLM, engine: Any, *, context: int | None = None, tokens: int = 16384, tolerance: float | None = None):
        super().__init__(
            policy.module,
            policy.tokenizer,
            chat_template=policy.chat_template,
            max_rows=policy.max_rows,
            chunk_elements=policy.chunk_elements,
        )
        self.defaults, self.version = policy.defaults, policy.version
        self.engine, self.context, self.tokens = engine, context, tokens
        self.tolerance = TOLERANCE.get(self.backbone.head.weight.dtype, TOLERANCE_16) if tolerance is None else tolerance
        self.gap = 0.0
        self._published: tuple[int, int] | None = None

    # -- weights ---------------------------------------------------------------------------------------------------
    def publish(self) -> None:
        """Give the engine the weights if they have changed since it last got them, and make sure that they arrived.

        Raises QuatrainError if the engine holds other weights afterwards, or scores the probe differently.
        """
        # Some changes (a resumed run, a Sync) come without a new version, some (fused optimisers) without a new count.
        now = self.version, sum(parameter._version for parameter in self.module.parameters())
        if now == self._published:
            return
        sent: Sums = {}
        (untouched,) = self.engine.collective_rpc("quatrain_receive", args=(recorded(exported(self.backbone.model), sent),))
        self.engine.reset_prefix_cache()  # keys and values of the old weights
        if untouched:
            raise _lost("some of the engine's weights were not in the transfer", ", ".join(untouched[:3]))
        (held,) = self.engine.collective_rpc("quatrain_sums")
        if wrong := differing(sent, held)[1]:
            raise _lost("the weights did not arrive in the engine", f"another checksum in {len(wrong)} tensors: {', '.join(wrong[:3])}")
        gap = self.probe()
        if not gap <= self.tolerance:
            raise _lost(
                "the engine scores a fixed prompt differently after the weight transfer",
                f"a mean difference of {gap:.3g} nats",
                f"at most {self.tolerance:g} for {self.backbone.head.weight.dtype} weights",
            )
        self._published = now

    @torch.no_grad()
    def probe(self) -> float:
        """Mean |log-probability by the engine − by the trainer|, in nats, over a fixed prompt of tokens from all over the vocabulary."""
        from vllm import SamplingParams

        size, room = min(self.backbone.vocabulary, len(self.tokenizer)), self._room()
        prompt = [(1 + 7919 * i * i) % size for i in range(min(PROBE, room - 1) if room else PROBE)]
        params = SamplingParams(max_tokens=1, prompt_logprobs=1, detokenize=False)
        (output,) = self.engine.generate([{"prompt_token_ids": prompt}], sampling_params=params, use_tqdm=False)
        theirs = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], prompt[1:], strict=True)]
        batch = self.demonstrate([prompt[:1]], [prompt[1:]])
        ours = self.score(batch, [statistic := LogProb()])[statistic][0]
        return (ours.double() - torch.tensor(theirs, dtype=torch.float64, device=self.device)).abs().mean().item()

    # -- acting ----------------------------------------------------------------------------------------------------
    def sample(self, prompts: Sequence[Sequence[int]], group: int, sampling: Sampling, seeds: Tensor) -> Batch:
        """As ``CausalLM.sample``, by the engine. ``behaviour_logp`` is the engine's, of the distribution that it sampled
        from; ``old_logp`` is the trainer's of the same distribution, so that the ratio is 1 before the first update.

        Raises QuatrainError for what vLLM cannot sample so that its distribution is known, and where the two disagree.
        """
        self._check(prompts, sampling)
        self.publish()
        owners = [prompt for prompt in prompts for _ in range(group)]
        eos = self._stops_for(()).eos
        outputs = self.engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in owners],
            sampling_params=[self._request(sampling, seed, eos) for seed in seeds.tolist()],
            use_tqdm=False,
        )
        batch = self._read([output.outputs[0] for output in outputs], owners, sampling, seeds, eos)
        with torch.no_grad():
            statistic = LogProb()
            old = scored(batch, lambda part: self.score(part, [statistic]), self.tokens)[statistic]
        self.gap = (old - batch["behaviour_logp"])[batch.mask].double().abs().mean().item()
        if not self.gap <= self.tolerance:
            raise QuatrainError(
                "vLLM and the trainer disagree on the log-probabilities of what was sampled",
                given=f"a mean difference of {self.gap:.3g} nats",
                expected=f"at most {self.tolerance:g}; this is no longer the distribution that is trained",
                fix="check that vLLM knows logprobs_mode='processed_logprobs' (0.22 or newer), or sample with engine=local",
            )
        return batch.with_columns(old_logp=old)

    def _request(self, sampling: Sampling, seed: int, eos: tuple[int, ...]) -> Any:
        from vllm import SamplingParams

        wide = truncates(sampling, self.backbone.vocabulary)
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_actions,
            seed=seed & (2**63 - 1),  # vLLM takes -1 for none
            stop=list(sampling.stop) or None,
            stop_token_ids=list(eos),
            ignore_eos=True,  # what ends a completion is said here, not by the model's files
            logprobs=min(self.backbone.vocabulary, sampling.top_k + TIES) if wide else 0,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
        )

    def _read(self, completions: list[Any], owners: list, sampling: Sampling, seeds: Tensor, eos: tuple[int, ...]) -> Batch:
        """vLLM's completions as a batch, without ``old_logp``."""
        rows = [list(completion.token_ids) for completion in completions]
        reasons = [completion.finish_reason for completion in completions]
        if odd := [reason for reason, row in zip(reasons, rows, strict=True) if not row or reason not in ("stop", "length")]:
            raise QuatrainError("vLLM gave up on a completion", given=f"finish_reason={odd[0]}", fix="look at vLLM's own messages above")
        longest = max(map(len, rows))
        entries = [completion.logprobs for completion in completions]
        tokens = self._table([[*row, *[0] * (longest - len(row))] for row in rows], torch.long)
        mask = torch.arange(longest, device=self.device) < self._table(list(map(len, rows)), torch.long)[:, None]
        chosen = [[entry[token].logprob for entry, token in zip(*pair, strict=True)] for pair in zip(entries, rows, strict=True)]
        columns = {"behaviour_logp": self._table([[*row, *[0.0] * (longest - len(row))] for row in chosen], torch.float32)}
        if truncates(sampling, self.backbone.vocabulary):
            columns["support"] = self._support(entries, longest, sampling)
        # An end-of-sequence token in the last place is an end, whatever was looked at first.
        cut = [reason == "length" and row[-1] not in eos for reason, row in zip(reasons, rows, strict=True)]
        per_row = {"seed": seeds.to(self.device)}
        if sampling.temperature not in (0, 1):
            per_row["temperature"] = torch.full((len(rows),), float(sampling.temperature), device=self.device)
        return self._batch(owners, tokens, mask, self._table(cut, torch.bool), Origin.POLICY, columns, per_row)

    def _support(self, entries: list[list[dict[int, Any]]], longest: int, sampling: Sampling) -> Tensor:
        """[N, T, K] int32 action id + 1: the actions that vLLM left a probability. Refused if they are not all there."""
        kept = [[{token: item.logprob for token, item in entry.items() if item.logprob > -1e30} for entry in row] for row in entries]
        width = max(len(entry) for row in kept for entry in row)
        mass = torch.tensor([list(entry.values()) + [-torch.inf] * (width - len(entry)) for row in kept for entry in row]).exp().sum(1)
        if not mass.min() >= 1 - UNCOVERED:
            raise QuatrainError(
                "the actions that vLLM sampled from are more than it gives back",
                given=f"mass {mass.min():.4f} of {width} actions at top_k={sampling.top_k}",
                expected="mass 1",
                fix="top_k=0 top_p=1, or engine=local",
            )
        ids = [[[token + 1 for token in entry] + [0] * (width - len(entry)) for entry in row] for row in kept]
        return self._table([row + [[0] * width] * (longest - len(row)) for row in ids], torch.int32)

    def _table(self, values: list, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def _room(self) -> int | None:
        return self.context or getattr(self.backbone.model.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def _check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        if not prompts or not all(prompts):
            raise QuatrainError(
                "a prompt has no token", given=f"{len(prompts)} prompts", expected="at least one prompt of at least one token"
            )
        if sampling.heat is not None:
            raise QuatrainError("vLLM has one temperature for all tokens", given="a heat by entropy", fix="engine=local")
        if sampling.temperature != 0 and not 0.01 <= sampling.temperature <= 2:
            raise QuatrainError(
                "vLLM does not sample at this temperature", given=sampling.temperature, expected="0, or 0.01 to 2", fix="engine=local"
            )
        if not 0 < sampling.top_p <= 1 or sampling.top_k < 0 or sampling.max_actions < 1:
            raise QuatrainError("nothing can be sampled so", given=sampling, expected="0 < top_p ≤ 1, top_k ≥ 0, max_actions ≥ 1")
        if truncates(sampling, self.backbone.vocabulary) and not 0 < sampling.top_k <= MAX_TOP_K:
            raise QuatrainError(
                "vLLM does not give back the whole set of actions that are left by top_p or a wide top_k, and the ratio needs it",
                given=f"top_p={sampling.top_p} top_k={sampling.top_k}",
                expected=f"top_k from 1 to {MAX_TOP_K}, with or without top_p",
                fix=f"top_k={MAX_TOP_K} beside top_p, top_p=1 top_k=0, or engine=local",
            )
        room = self._room()
        if room and max(map(len, prompts)) + sampling.max_actions > room:
            raise QuatrainError(
                "a prompt and its completion do not fit into the engine's context",
                given=f"{max(map(len, prompts))} prompt tokens + max_actions={sampling.max_actions}",
                expected=f"at most {room}",
                fix="lower max_actions, drop long prompts, or raise engine_context",
            )


def start(policy: CausalLM, memory: float = 0.4, context: int | None = None) -> VLLMCausalLM:
    """The policy with a vLLM engine of its shape. The engine starts with random weights: only a transfer makes it work.

    memory   share of the GPU's memory for the engine: its weights and its keys and values. The rest is for training.
    context  the longest sequence, prompt and completion; None: the model's own, for which there must be room.

    Raises QuatrainError if vLLM is not installed, or for a policy that is no language model.
    """
    if not isinstance(policy, CausalLM):
        raise QuatrainError("vLLM samples from language models", given=type(policy).__name__, fix="engine=local")
    # The worker must live in this process: then weights go from GPU to GPU by reference, and nothing is pickled.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        from vllm import LLM
    except ImportError as error:
        raise QuatrainError(
            "engine=vllm needs vLLM", given=error, fix='pip install "quatrain[vllm]" on a machine with a GPU, or engine=local'
        ) from error
    model = policy.backbone.model
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    folder = tempfile.TemporaryDirectory(prefix="quatrain-vllm-")
    config.save_pretrained(folder.name)
    policy.tokenizer.save_pretrained(folder.name)
    engine = LLM(
        model=folder.name,
        load_format="dummy",
        dtype=str(policy.backbone.head.weight.dtype).removeprefix("torch."),
        gpu_memory_utilization=memory,
        max_model_len=context,
        max_logprobs=MAX_TOP_K + TIES,
        logprobs_mode="processed_logprobs",  # of the distribution after temperature, top-k and top-p
        generation_config="vllm",  # not the model's own sampling defaults
        enable_prefix_caching=True,  # a group's prompt is computed once
        worker_extension_cls="quatrain.engines.vllm_worker.WeightReceiver",
    )
    started = VLLMCausalLM(policy, engine, context=context)
    started.folder = folder  # lives as long as the engine
    return started


def _lost(what: str, given: str, expected: str | None = None) -> QuatrainError:
    return QuatrainError(what, given=given, expected=expected, fix="engine=local, or report the architecture and vLLM's version")
