"""A causal language model from a directory or a name, with the messages that a person needs when that fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quatrain.errors import QuatrainError, nearest
from quatrain.models.causal_lm import CausalLM, quiet
from quatrain.models.liger import use_liger
from quatrain.models.masked_diffusion import MaskedDiffusionLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}
ATTENTION = {"auto": None, "sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2"}


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): W + (alpha/rank)·B·A, with only A and B trained.

    rank     at least 1.
    alpha    scale of the update.
    targets  names of the adapted modules, or "all-linear".
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str | Sequence[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise QuatrainError("a low-rank adapter needs a rank and a scale", given=self, expected="rank ≥ 1, alpha > 0")


def load_causal_lm(
    name_or_path: str | Path,
    dtype: str = "float32",
    lora: LoraSettings | None = None,
    gradient_checkpointing: bool = False,
    device: str = "auto",
    trust_remote_code: bool = False,
    chat_template: bool | None = None,
    attention: str = "auto",
    liger: bool = False,
) -> CausalLM | MaskedDiffusionLM:
    """The model and tokenizer of a Hugging Face directory or hub name, as a policy. Only safetensors are read.

    A directory whose configuration says ``diffusion`` is that of a masked-diffusion model.

    dtype      "float32", "bfloat16" or "auto" (as saved). device  "auto" takes an accelerator if there is one.
    attention  "sdpa" (torch's), "eager", "flash" (the package flash-attn; 16 bits, on a GPU), or "auto" (transformers' choice).
    liger      Liger's kernels in norms and gated MLPs, on a GPU (see ``liger.use_liger``).

    Raises QuatrainError when the directory does not exist or holds no model, no safetensors or no tokenizer, when the
    hub cannot be reached, for an unknown dtype or attention, a device that is not there, and for kernels that cannot run here.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    import quatrain.models.delta_net  # noqa: F401 - makes its configuration known

    if dtype not in DTYPES:
        raise QuatrainError("unknown dtype", given=dtype, expected=", ".join(DTYPES), fix=nearest(dtype, DTYPES))
    if attention not in ATTENTION:
        raise QuatrainError("unknown attention", given=attention, expected=", ".join(ATTENTION), fix=nearest(attention, ATTENTION))
    name, place = str(name_or_path), _device(device)
    if attention == "flash":
        _check_flash(dtype, place)
    _check_directory(name)
    tokenizer = _tokenizer(name, trust_remote_code)
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=DTYPES[dtype],
                attn_implementation=ATTENTION[attention],
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise _refusal(name, "model", error) from error
    model = model.to(place)
    if liger:
        use_liger(model)
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    if lora is not None:
        model = add_lora(model, lora)
    kind = MaskedDiffusionLM if getattr(model.config, "diffusion", None) else CausalLM
    return kind(model, tokenizer, chat_template=chat_template)


def enable_gradient_checkpointing(model: Any) -> None:
    """Activations of each layer are computed again in the backward pass: memory for about a third more time."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def add_lora(model: Any, settings: LoraSettings) -> Any:
    """The model wrapped with trainable adapters; its own weights are frozen. Raises QuatrainError for targets it does not have."""
    from peft import LoraConfig, get_peft_model

    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise QuatrainError("the adapters do not fit the model", given=settings, expected=str(error), fix="targets='all-linear'") from error


def _check_flash(dtype: str, place: torch.device) -> None:
    """transformers would fetch a kernel from the hub in place of a missing package, or fail at the first forward."""
    from transformers.utils import is_flash_attn_2_available

    if place.type != "cuda" or dtype == "float32":
        raise QuatrainError(
            "flash attention runs in 16 bits on a GPU",
            given=f"dtype={dtype} device={place}",
            expected="dtype=bfloat16 device=cuda",
            fix="attention=sdpa, which uses a flash kernel of torch's own where it can",
        )
    if not is_flash_attn_2_available():
        raise QuatrainError("attention=flash needs the package flash-attn", fix="pip install flash-attn, or attention=sdpa")


def _check_directory(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_dir():
        files = {file.name for file in path.iterdir()}
        if not files & {"config.json", "adapter_config.json"}:
            raise QuatrainError(
                "this directory is not a model",
                given=path,
                expected="config.json, model.safetensors and the tokenizer's files",
                fix="give the directory that save_pretrained wrote",
            )
        if not any(file.endswith(".safetensors") for file in files):
            raise QuatrainError(
                "this directory has no safetensors weights",
                given=", ".join(sorted(files)),
                expected="model.safetensors",
                fix="load it once with transformers and save it with save_pretrained (pickled weights can run code and are not read)",
            )
    elif path.exists():
        raise QuatrainError("a model is a directory", given=path, expected="a directory with config.json and model.safetensors")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise QuatrainError(
            "this directory does not exist", given=path, expected="a Hugging Face model directory, or a name such as Qwen/Qwen3-0.6B"
        )


def _tokenizer(name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _refusal(name, "tokenizer", error) from error
    if len(tokenizer) < 3:  # what transformers makes of a configuration without the tokenizer's files
        raise _refusal(name, "tokenizer", ValueError("tokenizer.json or the files of an older format"))
    return tokenizer


def _refusal(name: str, what: str, error: Exception) -> QuatrainError:
    cause = str(error).strip().splitlines()[0]
    if Path(name).expanduser().is_dir():
        return QuatrainError(
            f"the directory's {what} cannot be loaded", given=name, expected=cause, fix=f"save the {what} there with save_pretrained"
        )
    return QuatrainError(
        f"no directory of this name, and the hub does not provide the {what}",
        given=name,
        expected=cause,
        fix="give a directory, or check the name and the connection",
    )


def _device(name: str) -> torch.device:
    """The device of that name, if it is here. Metal has no fp64, in which advantages, normalisers and draws are computed."""
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    usable = here if here is not None and here.type != "mps" else None
    if name == "auto":
        return usable or torch.device("cpu")
    kinds = ["cpu", *([usable.type] if usable else [])]
    if name.partition(":")[0] not in kinds:
        raise QuatrainError("there is no such device to train on", given=f"device={name}", expected=" or ".join(kinds), fix="device=auto")
    return torch.device(name)
