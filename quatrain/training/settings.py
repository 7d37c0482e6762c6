"""What a run is told besides its recipe: typed, checked whole before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quatrain.errors import QuatrainError, nearest


class Settings(BaseModel):
    """The settings of a run. Every field is a key of the command line and of a YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("auto", description="a directory or name, tiny[:strong], tiny-diffusion, tiny-delta; mlp, flow (control); auto fits")
    task: str = Field(
        "letters",
        description="letters[:kind], shapes, grid, toolworld, tool-choice, file.py:Environment, a JSONL or Parquet file, "
        "a data set's name, reasoning_gym:name, plane:world, gym:EnvId",
    )
    reward: str | None = Field(
        None, description="exact, math, a weighted sum such as math+0.1*format, or file.py:function; default: the task's own"
    )
    teacher: str | None = Field(None, description="a model as in model=, for recipes that ask for a teacher")
    out: str | None = Field(None, description="the run's folder; default runs/RECIPE-TASK-seedN")
    seed: int = Field(0, ge=0, lt=2**29, description="of everything that is drawn")
    resume: bool = Field(False, description="continue from the newest checkpoint in the run's folder")

    tokens: int | None = Field(None, ge=1, description="stop after the step that reaches this many sampled tokens, before steps=")
    simulated_seconds: float | None = Field(None, gt=0, description="stop after the step that reaches them: for recipes with a clock")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="how the learning rate falls after the warm-up")
    warmup: int = Field(0, ge=0, description="steps over which the learning rate rises")

    eval_every: int = Field(50, ge=0, description="steps between evaluations on held-out items; 0: only at the end")
    eval_count: int = Field(256, ge=1, description="held-out items, or episodes")
    eval_samples: int = Field(8, ge=0, description="samples per item for pass@k")
    save_every: int = Field(50, ge=0, description="steps between checkpoints; 0: only when interrupted and at the end")
    keep: int = Field(2, ge=1, description="checkpoints kept")

    dtype: Literal["float32", "bfloat16", "auto"] = Field("float32", description="of a Hugging Face model's weights")
    device: str = Field("auto", description="cpu, cuda …; auto takes an accelerator if there is one")
    attention: Literal["auto", "sdpa", "eager", "flash"] = Field("auto", description="flash: the package flash-attn, 16 bits on a GPU")
    liger: bool = Field(False, description="Liger's kernels in norms and gated MLPs, on a GPU")
    lora: int = Field(0, ge=0, description="rank of low-rank adapters; 0 trains all weights")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    chat: bool | None = Field(None, description="wrap plain prompts in the model's chat template; default: for chat messages only")

    engine: Literal["local", "vllm"] = Field("local", description="what samples: the trained model itself, or vLLM on the same GPU")
    engine_memory: float = Field(0.4, gt=0, lt=1, description="share of the GPU's memory for vLLM")
    engine_context: int | None = Field(None, ge=2, description="longest prompt and completion for vLLM; default: the model's own")

    prompt: str | None = Field(None, description="name of the prompt column")
    answer: str | None = Field(None, description="name of the answer column")
    solution: str | None = Field(None, description="name of the column of worked solutions")
    messages: str | None = Field(None, description="name of the column of chat messages")
    chosen: str | None = Field(None, description="name of the column of preferred completions")
    rejected: str | None = Field(None, description="name of the column of rejected completions")
    heldout: float | str = Field(0.1, description="share of a file's rows that is held out where it has no split of its own, or a file")
    limit: int | None = Field(None, ge=1, description="use at most this many rows of a file")

    reward_workers: int = Field(1, ge=1, description="processes that run untrusted or slow rewards")
    deadline: float = Field(5.0, gt=0, description="seconds a reward may take for one completion")

    tensorboard: bool = Field(True, description="write TensorBoard scalars")
    report: bool = Field(True, description="write an HTML report at the end")
    live: bool = Field(True, description="show progress in the terminal")
    threads: int | None = Field(None, ge=1, description="threads of torch; default: torch's own choice")


def parse_settings(values: Mapping[str, Any], also_known: Iterable[str] = ()) -> Settings:
    """Settings from a mapping. Raises QuatrainError naming the first wrong key, with the nearest known one, or the wrong type."""
    known = [*Settings.model_fields, *also_known]
    for name in values:
        if name not in Settings.model_fields:
            raise QuatrainError(f"unknown key {name!r}", given=f"{name}={values[name]}", fix=nearest(name, known))
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise QuatrainError(f"{first['loc'][0]} has a wrong value", given=repr(first["input"]), expected=first["msg"]) from None


def split_pairs(arguments: Iterable[str]) -> dict[str, Any]:
    """``key=value`` texts, and YAML files of keys, as one mapping; later ones win. Values are read as YAML (numbers, true, null)."""
    import yaml

    found: dict[str, Any] = {}
    for argument in arguments:
        if argument.endswith((".yaml", ".yml")) and "=" not in argument:
            found |= _read_yaml(Path(argument))
            continue
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise QuatrainError("an argument is key=value or a YAML file", given=argument, fix=f"{argument}=…")
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            value = text
        found[key.replace("-", "_")] = (
            number if (number := _number(text)) is not None else value if not isinstance(value, (dict, list)) else text
        )
    return found


def _number(text: str) -> float | None:
    """YAML reads 1e-4 as a text; people mean a number."""
    if "e" not in text.lower():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise QuatrainError("the configuration file cannot be read", given=f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise QuatrainError("the configuration file is not YAML", given=f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise QuatrainError(
            "the configuration file holds keys and values", given=f"{path}: {type(content).__name__}", expected="key: value lines"
        )
    return content
