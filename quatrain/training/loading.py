"""From names to a task and a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quatrain.errors import QuatrainError
from quatrain.protocols import Policy, Task
from quatrain.training.settings import Settings

PASSED = ("prompt", "answer", "solution", "messages", "chosen", "rejected", "heldout", "limit", "seed", "deadline")

LIBRARY = "library.json"
TINY = ("auto", "tiny", "tiny-delta", "tiny-diffusion")  # names of embedded language models; what stands after a colon says which


def load_run_task(settings: Settings) -> Task:
    """The task that the settings name, with its reward."""
    from quatrain.tasks.loading import load_task

    return load_task(
        settings.task,
        settings.reward,
        workers=settings.reward_workers,
        **settings.model_dump(include=set(PASSED)),
    )


def with_engine(policy: Policy, settings: Settings) -> Policy:
    """The policy, sampled by the engine that the settings name."""
    if settings.engine == "local":
        return policy
    from quatrain.engines.vllm import start

    return start(policy, settings.engine_memory, settings.engine_context)


def load_policy(name: str, task: Any, settings: Settings) -> Policy:
    """The policy that a name means; with a library in its context if its directory holds one."""
    policy = load_bare(name, task, settings)
    if not (Path(name).expanduser() / LIBRARY).is_file():
        return policy
    from quatrain.models.prompted import prompted
    from quatrain.search.library import read_library

    return prompted(policy, read_library(Path(name) / LIBRARY))


def load_bare(name: str, task: Any, settings: Settings) -> Policy:
    """The policy that a name means: the task's own small network, the embedded language model, or a Hugging Face one."""
    if hasattr(task, "network"):
        from quatrain.models.control import control_policy

        return control_policy(name, task, settings.seed)
    if name == "mlp" or name.partition("?")[0] == "flow":
        raise QuatrainError(
            "this model does not fit the task", given=f"model={name} task={task.name}", fix="model=tiny or a language model for texts"
        )
    if name in ("auto", "tiny") and hasattr(getattr(task, "environment", None), "lessons"):
        from quatrain.tasks.apprentice import apprentice

        return apprentice(task.environment)
    if name.partition(":")[0] in TINY:
        return load_tiny(getattr(task, "embedded", name) if name in ("auto", "tiny") else name)
    from quatrain.models.loading import LoraSettings, load_causal_lm

    return load_causal_lm(
        name,
        dtype=settings.dtype,
        lora=LoraSettings(rank=settings.lora, alpha=2.0 * settings.lora) if settings.lora else None,
        gradient_checkpointing=settings.gradient_checkpointing,
        device=settings.device,
        chat_template=settings.chat,
        attention=settings.attention,
        liger=settings.liger,
    )


def load_tiny(name: str) -> Policy:
    """An embedded language model by its name, built at first use."""
    if name.partition(":")[0] == "tiny-diffusion":
        from quatrain.tasks.embedded_diffusion import tiny_diffusion

        return tiny_diffusion(name)
    if name in ("tiny:shapes", "tiny:shapes-prior"):
        from quatrain.tasks.shapes.pupil import pupil

        return pupil(name)
    if name == "tiny-delta":
        from quatrain.tasks.embedded_delta import tiny_delta

        return tiny_delta()
    from quatrain.tasks.embedded import tiny

    return tiny(name.partition(":")[2] or "base")
