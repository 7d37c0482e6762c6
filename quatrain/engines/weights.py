"""The weights of a policy as an engine loads them, and whether they arrived.

Names are those of the Hugging Face checkpoint. A tied weight is named once. Adapters are merged into a copy of one
layer at a time, so that the trained weights are never touched: merging in place and unmerging drifts in bf16.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from quatrain.engines.vllm_worker import Sums, sums

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # one tensor in vLLM
PRECISION = 1e-10  # of a sum in fp64, relative to what it could be


def exported(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight of a Hugging Face model, adapters inside its layers merged.

    model  the model under any PEFT wrapper (``CausalLM.backbone.model``).
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer") and hasattr(module, "merge")}
    done: set[str | int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner = next((prefix for prefix in adapted if name.startswith(f"{prefix}.")), None)
        if owner is not None:
            if owner not in done:
                yield from ((f"{owner}.{part}", value) for part, value in merged(adapted[owner]).items())
            done.add(owner)
        elif id(tensor) not in done and ".original_module." not in name:
            done.add(id(tensor))
            head, saved, tail = name.partition(".modules_to_save.")  # PEFT's copy of a module that is trained whole
            yield (f"{head}.{tail.partition('.')[2]}" if saved else name), tensor.detach()


@torch.no_grad()
def merged(layer: Any) -> dict[str, Tensor]:
    """The plain layer's tensors by name with its active adapters added; the layer itself stays as it is."""
    twin = copy.deepcopy(layer)
    if not twin.disable_adapters and not twin.merged:
        twin.merge()
    return dict(twin.base_layer.state_dict())


def recorded(weights: Iterator[tuple[str, Tensor]], into: Sums) -> Iterator[tuple[str, Tensor]]:
    """The same weights; what each sums to is written into ``into`` on the way."""
    for name, tensor in weights:
        if tensor.is_floating_point():
            into[name] = sums(tensor)
        yield name, tensor


def differing(sent: Sums, held: Sums) -> tuple[int, list[str]]:
    """(how many of the engine's tensors could be compared, names of those that hold something else).

    What vLLM keeps in another shape (a padded vocabulary) or dtype is not compared.

    >>> sent = {"q_proj": ((2, 4), "float32", 1.0, 2.0), "k_proj": ((2, 4), "float32", 3.0, 4.0), "v_proj": ((2, 4), "float32", 5.0, 6.0)}
    >>> differing(sent, {"qkv_proj": ((6, 4), "float32", 9.0, 12.0)}), differing(sent, {"qkv_proj": ((6, 4), "float32", 9.1, 12.0)})
    ((1, []), (1, ['qkv_proj']))
    """
    compared, wrong = 0, []
    for name, (shape, dtype, total, square) in held.items():
        expected = _expected(sent, name)
        if expected is None or expected[:2] != (shape, dtype):
            continue
        compared += 1
        slack = PRECISION * (math.sqrt(math.prod(shape) * expected[3]) + expected[3])
        if not (abs(total - expected[2]) <= slack and abs(square - expected[3]) <= slack):  # a NaN is wrong too
            wrong.append(name)
    return compared, wrong


def _expected(sent: Mapping[str, tuple], name: str) -> tuple | None:
    """What the tensor of that name should be; of several that vLLM keeps in one, their sum."""
    if name in sent:
        return sent[name]
    for fused, parts in FUSED.items():
        found = [sent.get(name.replace(fused, part)) for part in parts] if fused in name else []
        if found and all(found):
            shape = (sum(part[0][0] for part in found), *found[0][0][1:])
            return shape, found[0][1], sum(part[2] for part in found), sum(part[3] for part in found)
    return None
