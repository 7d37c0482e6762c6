"""The client of vLLM against a stand-in with its own weights: they arrive, or it is said; what is recorded is what was sampled."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import quatrain
from quatrain.batch import Batch
from quatrain.engines.vllm import MAX_TOP_K, TIES, VLLMCausalLM, start
from quatrain.engines.weights import exported, merged
from quatrain.errors import QuatrainError
from quatrain.models.causal_lm import CausalLM
from quatrain.models.loading import LoraSettings, add_lora
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from tests.engines.fake_vllm import Plant, install
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.training.test_run import QUIET, letters

PROMPTS = [[5, 6, 7], [9, 3]]
SEEDS = torch.arange(6) * (2**40 + 1) - 1  # the first one is -1, which vLLM takes for none


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    return install(monkeypatch)


def local(lora: bool = False, scale: float = 4.0, **options: object) -> CausalLM:
    tokens = tiny_tokenizer()
    model = tiny_model("qwen3", vocabulary=len(tokens), scale=scale, **options)
    if lora:
        model = add_lora(model, LoraSettings(rank=2, alpha=4.0))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.5)
    return CausalLM(model, tokens)


def trained(policy: CausalLM, size: float = 0.05) -> None:
    """As a Fit does: trainable weights move in place, the version counts."""
    generator = torch.Generator().manual_seed(policy.version)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    policy.version += 1


def sampled(policy: CausalLM, **sampling: object) -> Batch:
    return policy.sample(PROMPTS, 3, Sampling(**{"max_actions": 6, **sampling}), SEEDS)


# -- weights -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_the_engine_samples_with_the_trained_weights_after_every_update(plant: Plant, tied: bool, lora: bool):
    policy = start(local(lora, tied=tied))
    for _ in range(3):
        assert policy.probe() > 0.1  # not yet
        batch = sampled(policy)
        assert policy.probe() < 1e-5 and policy.gap < 1e-5
        torch.testing.assert_close(batch["behaviour_logp"], batch["old_logp"], atol=1e-4, rtol=0)
        trained(policy)
    names = plant.received
    assert len(names) == 3 * len(set(names)) and not any("lora" in name or "base_layer" in name for name in names)
    assert ("lm_head.weight" in names) != tied  # a tied weight travels once


def test_unchanged_weights_are_not_sent_again_and_changed_ones_are_whatever_the_version_says(plant: Plant):
    policy = start(local())
    sampled(policy)
    count = len(plant.received)
    sampled(policy)
    assert len(plant.received) == count
    with torch.no_grad():
        next(policy.module.parameters()).mul_(1.1)  # as a resumed run or a Sync does
    sampled(policy)
    assert len(plant.received) == 2 * count
    policy.version += 1  # as a fused optimiser does: PyTorch counts no change
    sampled(policy)
    assert len(plant.received) == 3 * count


def test_a_dropped_transfer_is_caught_by_the_checksum_and_without_one_by_the_probe(plant: Plant):
    policy = start(local())
    sampled(policy)
    trained(policy, 1e-6)  # far below what a probe could see
    plant.drop = True
    with pytest.raises(QuatrainError, match="another checksum in") as caught:
        sampled(policy)
    assert "qkv_proj" in str(caught.value) or "norm" in str(caught.value) or "embed" in str(caught.value)
    trained(policy, 0.3)
    plant.blind = True
    with pytest.raises(QuatrainError, match=r"fixed prompt differently.*\n.*difference of \d.*nats"):
        sampled(policy)
    plant.drop = False
    assert len(sampled(policy)) == 6  # nothing was taken for done


@pytest.mark.parametrize("name", ["model.layers.1.mlp.gate_up_proj.weight", "model.embed_tokens.weight"])
def test_weights_in_the_wrong_places_are_caught_by_the_probe(plant: Plant, name: str):
    plant.shuffle = name
    with pytest.raises(QuatrainError, match="fixed prompt differently"):
        sampled(start(local()))


def test_a_tensor_that_the_engine_did_not_get_is_named(plant: Plant):
    plant.skip = ("model.norm.weight",)
    with pytest.raises(QuatrainError, match=r"not in the transfer[\s\S]*model\.norm\.weight"):
        sampled(start(local()))


def test_keys_and_values_of_old_weights_are_forgotten(plant: Plant):
    policy = start(local())
    sampled(policy)
    trained(policy, 0.3)
    plant.keep_cache = True
    with pytest.raises(QuatrainError, match="disagree on the log-probabilities of what was sampled"):
        sampled(policy)
    plant.keep_cache = False
    policy.version += 1
    assert len(sampled(policy)) == 6


def test_adapters_are_merged_outside_the_model():
    policy = local(lora=True)
    before = {name: value.clone() for name, value in policy.module.state_dict().items()}
    weights = dict(exported(policy.backbone.model))
    layer = policy.backbone.model.model.layers[0].self_attn.q_proj
    by_hand = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(weights["model.layers.0.self_attn.q_proj.weight"], by_hand.detach())
    assert not torch.equal(merged(layer)["weight"], layer.base_layer.weight)
    assert all(torch.equal(value, before[name]) for name, value in policy.module.state_dict().items())
    plain = tiny_model("qwen3", vocabulary=len(policy.tokenizer), scale=4.0)
    assert set(weights) == {name for name, _ in plain.named_parameters()}


# -- what is recorded ----------------------------------------------------------------------------------------------
SETTINGS = [{}, {"temperature": 0.6}, {"temperature": 1.3, "top_k": 5}, {"top_k": 12, "top_p": 0.7}, {"temperature": 0.0, "top_k": 4}]


@pytest.mark.parametrize("sampling", SETTINGS)
def test_recorded_log_probabilities_are_those_of_the_distribution_sampled_from(plant: Plant, sampling: dict):
    policy = start(local())
    batch = sampled(policy, **sampling)
    statistic = LogProb()
    ratio = (policy.score(batch, [statistic])[statistic] - batch["behaviour_logp"]).exp()
    torch.testing.assert_close(ratio[batch.mask], torch.ones(int(batch.mask.sum())), atol=1e-4, rtol=0)
    assert policy.gap < 1e-4
    mirror = local().sample(PROMPTS, 3, Sampling(**{"max_actions": 6, **sampling}), SEEDS.clone())
    assert set(batch.columns) == set(mirror.columns) and set(batch.rows) == set(mirror.rows)
    assert {name: value.dtype for name, value in batch.columns.items()} == {name: value.dtype for name, value in mirror.columns.items()}


def test_the_support_is_the_set_that_was_sampled_from(plant: Plant):
    policy = start(local())
    batch, mirror = sampled(policy, top_k=6, top_p=0.8, max_actions=1), local()
    logits = mirror.module(torch.tensor([PROMPTS[0]])).logits[0, -1]
    ordered = logits.topk(6)
    inside = ordered.values.softmax(0).cumsum(0) - ordered.values.softmax(0) < 0.8
    expected = {token + 1 for token in ordered.indices[inside].tolist()}
    assert {int(one) for one in batch["support"][0, 0] if one} == expected
    assert (batch["support"] == (batch.actions + 1)[:, :, None]).any(2)[batch.mask].all()
    assert plant.params[-1].logprobs == 6 + TIES and plant.options["max_logprobs"] == MAX_TOP_K + TIES


def test_actions_that_tie_with_the_kth_are_in_the_support_and_a_set_that_is_too_wide_is_refused(plant: Plant):
    flat = local()
    with torch.no_grad():
        flat.backbone.head.weight.mul_(0.0)  # every action is as likely: all are left by top-k
    policy = start(flat)
    assert sampled(policy, top_k=20)["support"].gt(0).sum(2)[:, 0].tolist() == [len(flat.tokenizer)] * 6
    with pytest.raises(QuatrainError, match=r"more than it gives back[\s\S]*mass 0\.\d+ of 3[56]"):
        sampled(policy, top_k=3)


@pytest.mark.parametrize("sampling", [{"temperature": 0.5}, {"top_k": 3}])
def test_raw_log_probabilities_are_refused(plant: Plant, sampling: dict):
    plant.raw = True
    policy = start(local())
    with pytest.raises(QuatrainError, match=r"processed_logprobs|more than it gives back"):
        sampled(policy, **sampling)
    assert len(sampled(policy)) == 6  # at temperature 1 and untruncated they are the same


@pytest.mark.parametrize(
    "sampling, told",
    [({"top_p": 0.9}, "top_k from 1 to 256"), ({"temperature": 2.5}, "0.01 to 2"), ({"temperature": 0.001}, "0.01 to 2"),
     ({"max_actions": 5000}, "engine's context"), ({"top_p": 0.0}, "nothing can be sampled")],
)  # fmt: skip
def test_what_vllm_would_change_silently_is_refused(plant: Plant, sampling: dict, told: str):
    with pytest.raises(QuatrainError, match=told):
        sampled(start(local()), **sampling)
    assert not plant.params  # before anything is sampled


# -- rows ----------------------------------------------------------------------------------------------------------
def test_rows_are_ordered_prompt_by_prompt_and_regenerate_from_their_seeds_in_any_company(plant: Plant):
    policy = start(local(scale=1.0))
    batch = sampled(policy, temperature=1.5)
    assert batch.contexts["policy"]["tokens"].tolist() == [[5, 6, 7]] * 3 + [[9, 3, 0]] * 3
    assert torch.equal(batch["seed"], SEEDS) and len({tuple(row) for row in batch.actions.tolist()}) == 6
    params = plant.params[-6:]
    assert len({one.seed for one in params}) == 6 and None not in {one.seed for one in params}
    alone = policy.sample([PROMPTS[1]], 1, Sampling(temperature=1.5, max_actions=6), SEEDS[4:5])
    assert torch.equal(alone.actions[0][alone.mask[0]], batch.actions[4][batch.mask[4]])


@pytest.mark.parametrize("length_first", [False, True])
def test_ends_are_told_from_cuts(plant: Plant, length_first: bool):
    plant.length_first = length_first
    model = local(scale=1.0)
    eos = model.tokenizer.eos_token_id
    policy = start(model)
    batch = policy.sample([PROMPTS[0]], 100, Sampling(temperature=2.0, max_actions=9), torch.arange(100))
    assert batch["terminated"][:, 8].any()  # one ends in the last place
    last = batch.mask & (batch.mask.cumsum(1) == batch.lengths[:, None])
    ended = batch.actions[last] == eos
    assert 5 < ended.sum() < 95
    assert torch.equal(batch["terminated"][last], ended) and torch.equal(batch["truncated"][last], ~ended)
    assert (batch.lengths[~ended] == 9).all() and (batch.actions[batch.mask & ~last] != eos).all()
    assert (batch["version"] == 0).all() and not plant.params[-1].detokenize


def test_stop_texts_end_a_completion_and_stay_in_it(plant: Plant):
    policy = start(local(scale=1.0))
    batch = policy.sample([PROMPTS[0]], 50, Sampling(temperature=2.0, max_actions=20, stop=("a", "7+")), torch.arange(50))
    texts = [policy.decode(actions[mask]) for actions, mask in zip(batch.actions, batch.mask, strict=True)]
    ended = batch["terminated"].any(1)
    assert any(text.endswith("a") for text in texts) and not any("a" in text[:-1] for text in texts)
    assert all(end or ("a" not in text and "7+" not in text) for end, text in zip(ended.tolist(), texts, strict=True))
    assert plant.params[-1].detokenize and not plant.params[-1].skip_special_tokens


def test_an_aborted_request_is_an_error(plant: Plant):
    plant.abort = True
    with pytest.raises(QuatrainError, match="finish_reason=abort"):
        sampled(start(local()))


# -- the engine ----------------------------------------------------------------------------------------------------
def test_the_engine_is_started_in_this_process_with_random_weights_and_the_trainers_dtype(plant: Plant):
    policy = start(local(dtype=torch.bfloat16), memory=0.3, context=64)
    assert plant.options == {
        "load_format": "dummy",
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.3,
        "max_model_len": 64,
        "max_logprobs": MAX_TOP_K + TIES,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "enable_prefix_caching": True,
        "worker_extension_cls": "quatrain.engines.vllm_worker.WeightReceiver",
    }
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    batch = sampled(policy)
    assert policy.tolerance == 0.2 and policy.gap < 0.05 and batch["old_logp"].dtype == torch.float32
    with pytest.raises(QuatrainError, match="engine's context"):
        sampled(policy, max_actions=62)


def test_adapters_over_16_bit_weights_arrive_after_every_update(plant: Plant):
    policy = start(local(lora=True, dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in policy.module.parameters() if parameter.requires_grad} == {torch.float32}
    for _ in range(2):
        sampled(policy)
        assert policy.gap < 0.1
        trained(policy)
    plant.drop = True
    with pytest.raises(QuatrainError, match="another checksum"):
        sampled(policy)


def test_everything_else_is_the_trained_module(plant: Plant, tmp_path: Path):
    inner = local()
    inner.defaults, inner.version = {"lr": 1e-4}, 7
    policy = start(inner)
    assert isinstance(policy, VLLMCausalLM) and policy.module is inner.module and policy.version == 7 and policy.defaults == inner.defaults
    assert (sampled(policy)["version"][:, 0] == 7).all()
    twin = policy.clone()
    assert type(twin) is CausalLM and twin.version == 7  # frozen selves need no engine
    policy.save(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_a_missing_vllm_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(QuatrainError, match=r"quatrain\[vllm\]"):
        start(local())
    with pytest.raises(QuatrainError, match=r"quatrain\[vllm\]"):
        quatrain.train("grpo", task=letters(), model=local(), engine="vllm")


def test_a_run_samples_and_evaluates_through_the_engine(plant: Plant, tmp_path: Path):
    keys = {"prompts": 2, "max_actions": 4, "temperature": 0.7, "steps": 2, "lr": 1e-3}
    run = quatrain.train("grpo", task=letters(), model=local(), engine="vllm", engine_memory=0.25, out=str(tmp_path), **keys, **QUIET)
    policy = run.state.models["policy"]
    assert isinstance(policy, VLLMCausalLM) and plant.options["gpu_memory_utilization"] == 0.25
    assert policy.version == 2 and len(plant.received) == 3 * len(set(plant.received))  # at the start and after each update
    assert 0 <= run.metrics["sampler_gap"] < 1e-4


def test_a_resumed_run_begins_with_a_transfer(plant: Plant, tmp_path: Path):
    keys = {"prompts": 2, "max_actions": 4, "temperature": 0.7, "lr": 1e-2, "engine": "vllm", **QUIET}
    whole = quatrain.train("grpo", task=letters(), model=local(), out=str(tmp_path / "whole"), steps=3, **keys)
    quatrain.train("grpo", task=letters(), model=local(), out=str(tmp_path / "cut"), steps=2, **keys)
    resumed = quatrain.train("grpo", task=letters(), model=local(), out=str(tmp_path / "cut"), steps=3, resume=True, **keys)
    for one, other in zip(
        whole.state.models["policy"].module.parameters(), resumed.state.models["policy"].module.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_network_has_no_engine(plant: Plant, tmp_path: Path):
    pytest.importorskip("gymnasium")
    with pytest.raises(QuatrainError, match="samples from language models"):
        quatrain.train("reinforce", task="gym:CartPole-v1", engine="vllm", out=str(tmp_path), **QUIET)
