"""Loading: what works, and what each mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models.loading import LoraSettings, load_causal_lm
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from tests.tiny_models import tiny_directory, tiny_model, tiny_tokenizer


def test_a_directory_loads_as_asked(tmp_path) -> None:
    folder = tiny_directory(tmp_path / "model", "llama", chat=True)
    ours = load_causal_lm(folder, device="cpu")
    assert ours.module.dtype == torch.float32 and ours.device == torch.device("cpu")
    low = load_causal_lm(str(folder), dtype="bfloat16", device="cpu")
    assert low.module.dtype == torch.bfloat16
    lean = load_causal_lm(folder, lora=LoraSettings(rank=2), gradient_checkpointing=True, device="cpu")
    batch = ours.demonstrate([ours.encode("1+1=")], ["2"])
    expected = ours.score(batch, [LogProb()])[LogProb()]
    logp = lean.score(batch, [LogProb()])[LogProb()]
    assert torch.equal(logp, expected)  # new adapters change nothing
    logp.sum().backward()
    slopes = {name: parameter.grad for name, parameter in lean.module.named_parameters() if parameter.requires_grad}
    assert slopes and all("lora" in name and slope is not None for name, slope in slopes.items())
    assert any(slope.abs().max() > 0 for slope in slopes.values())


def test_mistakes_have_messages(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (pickled / name).write_text("{}")
    untold = tmp_path / "untold"
    tiny_model("gpt2").save_pretrained(untold)
    broken = tiny_directory(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    for name, match in (
        (tmp_path / "nowhere", "does not exist"),
        ("./nowhere", "does not exist"),
        (tmp_path / "file", "a model is a directory"),
        (tmp_path / "empty", "not a model"),
        (pickled, "no safetensors"),
        (untold, "tokenizer cannot be loaded"),
        (broken, "model cannot be loaded"),
        ("nobody/nothing", "give a directory"),
    ):
        with pytest.raises(QuatrainError, match=match):
            load_causal_lm(name, device="cpu")


def test_settings_are_checked(tmp_path) -> None:
    folder = tiny_directory(tmp_path / "model")
    with pytest.raises(QuatrainError, match="did you mean 'float32'"):
        load_causal_lm(folder, dtype="float3", device="cpu")
    with pytest.raises(QuatrainError, match="rank ≥ 1"):
        LoraSettings(rank=0)
    with pytest.raises(QuatrainError, match="all-linear"):
        load_causal_lm(folder, lora=LoraSettings(targets=["nonesuch"]), device="cpu")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_as_asked_and_changes_no_number(tmp_path: Path, attention: str) -> None:
    ours = load_causal_lm(tiny_directory(tmp_path), device="cpu", attention=attention)
    assert ours.backbone.model.config._attn_implementation == attention
    batch = ours.sample([ours.encode("1+1="), ours.encode("12*34=")], 2, Sampling(max_actions=4), torch.arange(4))
    torch.testing.assert_close(ours.score(batch, [LogProb()])[LogProb()], batch["behaviour_logp"], rtol=0, atol=2e-5)


def test_flash_attention_is_refused_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_directory(tmp_path)
    with pytest.raises(QuatrainError, match="did you mean 'flash'"):
        load_causal_lm(folder, attention="flush", device="cpu")
    with pytest.raises(QuatrainError, match="16 bits on a GPU"):
        load_causal_lm(folder, attention="flash", dtype="bfloat16", device="cpu")
    monkeypatch.setattr("quatrain.models.loading._device", lambda name: torch.device("cuda"))
    with pytest.raises(QuatrainError, match="16 bits on a GPU"):
        load_causal_lm(folder, attention="flash")
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    with pytest.raises(QuatrainError, match="pip install flash-attn"):
        load_causal_lm(folder, attention="flash", dtype="bfloat16")


def test_pad_may_equal_eos(tmp_path) -> None:
    tokenizer = load_causal_lm(tiny_directory(tmp_path / "model", pad_is_eos=True), device="cpu").tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id != tiny_tokenizer().pad_token_id + 1


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "tpu"])
def test_a_device_that_is_not_here_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(QuatrainError, match=f"device={name}"):
        load_causal_lm(tiny_directory(tmp_path), device=name)


def test_an_accelerator_without_double_precision_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert load_causal_lm(tiny_directory(tmp_path)).device.type == "cpu"
