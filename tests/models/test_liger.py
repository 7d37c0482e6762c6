"""Liger's kernels: what is refused, what is replaced and what is not, beside a stand-in of its interface.

The kernels themselves run in ``tests/conformance/test_liger.py``, where Liger and Triton are installed.
"""

from __future__ import annotations

import copy
import sys
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from transformers.models.qwen3 import modeling_qwen3

from quatrain.errors import QuatrainError
from quatrain.models.causal_lm import CausalLM
from quatrain.models.liger import use_liger
from quatrain.models.loading import load_causal_lm
from quatrain.parts.likelihoods import LogProb
from tests.tiny_models import tiny_directory, tiny_model, tiny_tokenizer


def stand_in(monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> list[dict[str, Any]]:
    """A package with the names of liger-kernel 0.8; its norms are the model's own times ``factor``. Returns what it is asked for."""
    asked: list[dict[str, Any]] = []

    def replace_kernels(model: Any, **options: Any) -> None:
        asked.append(options)
        modeling_qwen3.Qwen3RMSNorm = "another class"  # as Liger does, for models that are made later
        norm = model.model.norm
        norm.forward = MethodType(lambda self, x: factor * type(self).forward(self, x), norm)

    package, transformers, patch = (ModuleType(name) for name in ("liger_kernel", "transformers", "monkey_patch"))
    transformers._apply_liger_kernel_to_instance = replace_kernels
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": replace_kernels}
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", transformers)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", patch)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return asked


def test_it_needs_a_gpu_and_the_package(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    folder = tiny_directory(tmp_path)
    with pytest.raises(QuatrainError, match="run on a GPU"):
        load_causal_lm(folder, device="cpu", liger=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # not installed
    with pytest.raises(QuatrainError, match=r"quatrain\[liger\]"):
        load_causal_lm(folder, device="cpu", liger=True)


def test_an_unknown_architecture_and_other_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    with pytest.raises(QuatrainError, match="no kernels for this architecture"):
        use_liger(tiny_model("gpt2"))
    stand_in(monkeypatch, factor=1.5)
    with pytest.raises(QuatrainError, match="something else with Liger"):
        use_liger(tiny_model("qwen3"))


def test_head_loss_and_other_models_stay_as_they_are(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in(monkeypatch)
    own = modeling_qwen3.Qwen3RMSNorm
    policy = load_causal_lm(tiny_directory(tmp_path), device="cpu", liger=True)
    assert asked == [{"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}]
    assert modeling_qwen3.Qwen3RMSNorm is own and "forward" not in vars(policy.backbone.model)
    assert policy.backbone.plain_head
    norm, twin = policy.backbone.decoder.norm, policy.clone().backbone.decoder.norm
    assert norm.forward.__self__ is norm and twin.forward.__self__ is twin


def test_the_scorer_runs_on_replaced_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    plain, model = tiny_model("qwen3"), tiny_model("qwen3")
    use_liger(model)
    found = []
    for policy in (CausalLM(plain, tiny_tokenizer()), CausalLM(model, tiny_tokenizer())):
        batch = policy.demonstrate([policy.encode("1+1=")] * 2, ["2", "34"])
        score = policy.score(batch, [LogProb()])[LogProb()]
        score.sum().backward()
        found.append((score.detach(), copy.deepcopy(policy.backbone.decoder.norm.weight.grad)))
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(*found, strict=True))
