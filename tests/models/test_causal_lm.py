"""The causal LM as a policy: text in and out, ratio 1, clones, saved directories, adapters, low precision."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch, Origin
from quatrain.errors import QuatrainError
from quatrain.models.causal_lm import CausalLM
from quatrain.models.loading import LoraSettings, add_lora, enable_gradient_checkpointing
from quatrain.parts.likelihoods import Divergence, Entropy, LogProb
from quatrain.protocols import Policy, Sampling
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer


def policy(
    architecture: str = "qwen3", pad_is_eos: bool = False, chat: bool = False, chat_template: bool | None = None, **options
) -> CausalLM:
    tokenizer = tiny_tokenizer(pad_is_eos, chat)
    return CausalLM(tiny_model(architecture, vocabulary=len(tokenizer), **options), tokenizer, chat_template=chat_template)


def rollout(ours: CausalLM, group: int = 4, **sampling) -> Batch:
    prompts = [ours.encode(text) for text in ("12+3=", "5-", "count to 9: ")]
    options = {"max_actions": 12, **sampling}
    return ours.sample(prompts, group, Sampling(**options), torch.arange(3 * group) + 7)


def test_text_there_and_back() -> None:
    ours = policy()
    assert isinstance(ours, Policy)
    tokens = ours.encode("12 + 3 =\n")
    assert ours.decode(tokens) == "12 + 3 =\n" and len(tokens) == 9
    completion = ours.encode_completion("15")
    assert completion[-1] == ours.tokenizer.eos_token_id and ours.decode(torch.tensor(completion)) == "15"


def test_chat_messages_need_a_template() -> None:
    messages = [{"role": "user", "content": "2+2"}]
    assert policy(chat=True).decode(policy(chat=True).encode(messages)) == "u:2+2\na:"
    assert policy(chat=True).decode(policy(chat=True).encode("2+2")) == "2+2"
    always = policy(chat=True, chat_template=True)
    assert always.encode("2+2") == always.encode(messages)
    for without in (policy(), policy(chat=True, chat_template=False)):
        with pytest.raises(QuatrainError, match=r"set tokenizer\.chat_template"):
            without.encode(messages)
    with pytest.raises(QuatrainError, match="no token"):
        policy().encode("")


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(QuatrainError, match="end-of-sequence"):
        CausalLM(tiny_model(), tokenizer)
    with pytest.raises(QuatrainError, match="does not belong"):
        CausalLM(tiny_model(vocabulary=20), tiny_tokenizer())


@pytest.mark.parametrize("pad_is_eos", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.3, "top_k": 5}, {"temperature": 0.0}])
def test_before_the_first_update_every_ratio_is_one(architecture: str, pad_is_eos: bool, sampling: dict) -> None:
    ours = policy(architecture, pad_is_eos, tied=pad_is_eos)
    batch = rollout(ours, **sampling)
    logp = ours.score(batch, [LogProb()])[LogProb()]
    assert logp.shape == batch.shape and batch["old_logp"] is batch["behaviour_logp"] and len(batch) == 12
    torch.testing.assert_close(logp, batch["behaviour_logp"], rtol=0, atol=1e-5)


def test_what_a_sampled_batch_says() -> None:
    ours = policy(pad_is_eos=True)
    ours.version = 3
    batch = rollout(ours, group=30, temperature=0.7, top_p=0.95, max_actions=25)
    eos = ours.tokenizer.eos_token_id
    last = batch.lengths - 1
    ended = batch.actions[torch.arange(90), last] == eos
    assert 0 < ended.sum() < 90 and (batch.actions == eos)[batch.mask].sum() == ended.sum()  # it is an action, and the last one
    assert torch.equal(batch["terminated"].sum(1).bool(), ended) and torch.equal(batch["truncated"].sum(1).bool(), ~ended)
    assert (batch["terminated"] | batch["truncated"])[torch.arange(90), last].all() and (
        batch["terminated"] | batch["truncated"]
    ).sum() == 90
    assert batch["version"][batch.mask].unique().tolist() == [3] and batch["origin"].unique().tolist() == [Origin.POLICY]
    assert batch["temperature"].unique().tolist() == pytest.approx([0.7]) and "support" in batch and "temperature" not in rollout(ours)
    assert not batch.actions[~batch.mask].any() and not batch["behaviour_logp"][~batch.mask].any()
    again = ours.sample([ours.encode("5-")], 1, Sampling(temperature=0.7, top_p=0.95, max_actions=25), batch["seed"][40:41])
    assert again.actions[0].tolist() == batch.actions[40, : int(batch.lengths[40])].tolist()


def test_stop_texts_end_a_completion() -> None:
    ours = policy()
    batch = rollout(ours, group=60, stop=("1", "x+"), max_actions=40)
    texts = [ours.decode(row[mask]) for row, mask in zip(batch.actions, batch.mask, strict=True)]
    assert any(text.endswith("1") for text in texts)
    assert all("1" not in text[:-1] and "x+" not in text[:-1] for text in texts)
    stopped = torch.tensor([text.endswith(("1", "x+")) for text in texts])
    assert batch["terminated"].any(1)[stopped].all()
    with pytest.raises(QuatrainError, match="empty"):
        rollout(ours, stop=("",))


def test_demonstrations_are_actions_of_someone_else() -> None:
    ours = policy()
    batch = ours.demonstrate([ours.encode("1+1="), ours.encode("12-3=")], ["2", ours.encode_completion("9 ")])
    assert batch.lengths.tolist() == [2, 3] and batch["origin"][batch.mask].unique().tolist() == [Origin.DEMONSTRATION]
    assert batch["terminated"].sum(1).tolist() == [1, 1] and "behaviour_logp" not in batch
    both = Batch.cat([batch, rollout(ours, temperature=0.7, top_p=0.9)])
    score = ours.score(both, [LogProb()])[LogProb()]
    torch.testing.assert_close(score[:2, :3], ours.score(batch, [LogProb()])[LogProb()], rtol=0, atol=1e-5)
    torch.testing.assert_close(score[2:], both["behaviour_logp"][2:], rtol=0, atol=1e-5)
    with pytest.raises(QuatrainError, match="one completion per prompt"):
        ours.demonstrate([[1]], [])
    with pytest.raises(QuatrainError, match="completion 1"):
        ours.demonstrate([[1], [1]], [[2], []])


def test_dropout_never_acts() -> None:
    ours = policy("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    batch = rollout(ours)
    ours.module.train()
    torch.testing.assert_close(ours.score(batch, [LogProb()])[LogProb()], batch["behaviour_logp"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_changes_nothing(architecture: str) -> None:
    ours, lean = (policy(architecture, attention_dropout=0.3) if architecture != "gpt2" else policy(architecture) for _ in range(2))
    enable_gradient_checkpointing(lean.module)
    batch, forwards = rollout(ours), []
    lean.backbone.decoder.register_forward_hook(lambda module, args, output: forwards.append(module.training))
    for each in (ours, lean):
        each.score(batch, [Entropy()])[Entropy()].sum().backward()
    assert forwards == [True]
    for a, b in zip(ours.module.parameters(), lean.module.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rollout(lean)["behaviour_logp"], batch["behaviour_logp"], rtol=0, atol=1e-5)


def test_a_clone_is_frozen_and_its_own() -> None:
    ours = policy()
    batch, teacher = rollout(ours), ours.clone()
    before = teacher.score(batch, [LogProb()])[LogProb()]
    with torch.no_grad():
        for parameter in ours.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(teacher.score(batch, [LogProb()])[LogProb()], before) and not before.requires_grad
    divergence = ours.score(batch, [Divergence()], others={"teacher": teacher})[Divergence()]
    assert divergence[batch.mask].min() > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_directory_gives_the_same_logits(architecture: str, tied: bool, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = policy(architecture, tied=tied)
    ours.save(tmp_path)
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, ours.module(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path)("12").input_ids == ours.encode("12")
    assert any(file.suffix == ".safetensors" for file in tmp_path.iterdir())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_train_and_are_saved_merged(architecture: str, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    module = add_lora(tiny_model(architecture, vocabulary=len(tokenizer)), LoraSettings(rank=2, alpha=4.0))
    ours = CausalLM(module, tokenizer)
    batch = rollout(ours)
    loss = -ours.score(batch, [LogProb()])[LogProb()].sum()
    loss.backward()
    trained = {name for name, parameter in module.named_parameters() if parameter.grad is not None and parameter.grad.abs().max() > 0}
    assert trained and all("lora" in name for name in trained)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 10)
    changed = ours.score(batch, [LogProb()])[LogProb()]
    assert (changed - batch["behaviour_logp"]).abs().max() > 0.1
    ours.save(tmp_path)
    loaded = CausalLM(AutoModelForCausalLM.from_pretrained(tmp_path), tokenizer)
    torch.testing.assert_close(loaded.score(batch, [LogProb()])[LogProb()], changed, rtol=0, atol=2e-5)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    torch.testing.assert_close(ours.score(batch, [LogProb()])[LogProb()], changed, rtol=0, atol=0)  # saving left the model as it was


def test_bf16_keeps_statistics_in_fp32() -> None:
    ours = policy(dtype=torch.bfloat16)
    batch = rollout(ours, temperature=0.7, top_p=0.9)
    for ours.chunk_elements in (2**24, 100):
        logp = ours.score(batch, [LogProb()])[LogProb()]
        assert logp.dtype == torch.float32 and batch["behaviour_logp"].dtype == torch.float32
        torch.testing.assert_close(logp, batch["behaviour_logp"], rtol=0, atol=0.2)  # bf16 has eight bits
        logp.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in ours.module.parameters() if parameter.grad is not None)
