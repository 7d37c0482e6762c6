"""Liger's kernels in the layers of a Hugging Face model on a GPU: Hsu et al. 2024, arXiv 2410.10989.

Norms and gated MLPs, which then keep fewer activations for the backward pass. The head and its loss are never replaced: the
scorer never holds all logits anyway, and gives every statistic where Liger's fused loss gives one number. Nor are rotary
embeddings: they are a function that all models of an architecture in the process share, on whatever device.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor

from quatrain.errors import QuatrainError

NOT = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}  # what is not replaced
# Of hidden states, relative to the largest. Wrong kernels are off by its size; 16 bits round by 1/256 at each of many places.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


def use_liger(model: Any) -> None:
    """Replace what runs in this model's norms and gated MLPs, and compare its hidden states before and after on a few tokens.

    model  a Hugging Face causal LM, before it is wrapped by adapters.

    Raises QuatrainError without a GPU, without ``liger-kernel``, for an architecture that it does not know, and if hidden states differ.
    """
    if model.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":  # Triton's own interpreter: for tests
        raise QuatrainError(
            "Liger's kernels run on a GPU",
            given=f"device={model.device}",
            expected="device=cuda",
            fix="liger=false, or a machine with a GPU",
        )
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance as replace_kernels
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN
    except ImportError as error:
        raise QuatrainError("liger=true needs liger-kernel", given=error, fix='pip install "quatrain[liger]", or liger=false') from error
    kind = model.config.model_type
    if kind not in KNOWN:  # Liger itself says nothing
        raise QuatrainError("Liger has no kernels for this architecture", given=kind, expected=", ".join(sorted(KNOWN)), fix="liger=false")
    before = _hidden(model)
    modules = {sys.modules[type(part).__module__] for part in model.modules()}
    kept = {module: dict(vars(module)) for module in modules if module.__name__.startswith("transformers.models.")}
    replace_kernels(model=model, **NOT)
    for module, names in kept.items():  # Liger also puts its classes in place of the architecture's, for models that are made later
        vars(module).update(names)
    after = _hidden(model)
    gap, size = (after - before).abs().max().item(), before.abs().max().item()
    if not gap <= TOLERANCE.get(model.dtype, 1e-3) * size:
        raise QuatrainError(
            "the model computes something else with Liger's kernels",
            given=f"hidden states of {kind} that differ by {gap:.3g} of {size:.3g}",
            fix="liger=false, or another version of liger-kernel",
        )


@torch.no_grad()
def _hidden(model: Any) -> Tensor:
    ids = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    return model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float()
