"""All checks on one set-up, in the order of their cost; what cannot be checked is a finding as well."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from quatrain.errors import QuatrainError
from quatrain.experiments.doctor import chat, data, drift, gradients, memory, rewards, sampler, tokens, transfer
from quatrain.experiments.doctor.finding import OK, Examination, Finding, error, ok
from quatrain.experiments.doctor.patient import Patient
from quatrain.training.driver import build
from quatrain.training.loading import load_policy, load_run_task
from quatrain.training.recipe import Recipe
from quatrain.training.run import Plan, plan
from quatrain.training.state import State

Check = Callable[[Patient], Iterator[Finding]]

BOTH: tuple[Check, ...] = (
    sampler.check_ratio,
    sampler.check_distribution,
    gradients.check_coefficients,
    gradients.check_padding,
    gradients.check_cuts,
    transfer.check_clone,
    transfer.check_saved,
    transfer.check_sampler_follows,
    memory.check_memory,
    drift.check_drift,
)
TEXT: tuple[Check, ...] = (
    chat.check_chat,
    data.check_prompts_fit,
    data.check_repetitions,
    data.check_solutions,
    rewards.check_reward,
    rewards.check_signal,
    data.check_truncation,
    tokens.check_prompts,
    tokens.check_ends,
    tokens.check_context,
    tokens.check_tokens,
)
CONTROL: tuple[Check, ...] = (data.check_starts, rewards.check_environment, rewards.check_signal)


def doctor(recipe: Recipe | str = "grpo", **keys: Any) -> Examination:
    """Examine a model, a task with its reward, and a recipe, as ``quatrain.train`` would be given them; nothing is trained or written.

    keys  as for training: model, task, reward, temperature, top_p …; ``model`` and ``task`` may be objects.

    Raises QuatrainError for keys that are none, and for a model or a task that cannot be loaded.
    """
    planned = plan(recipe, **keys)
    if planned.settings.threads:
        torch.set_num_threads(planned.settings.threads)
    task = planned.objects.get("task") or load_run_task(planned.settings)
    with closing(task) if hasattr(task, "close") else nullcontext():
        began = perf_counter()
        patient, found = admit(planned, task)
        return examine(patient, found, {"set-up": perf_counter() - began})


def admit(planned: Plan, task: Any) -> tuple[Patient, list[Finding]]:
    """Policy and models loaded, names resolved. A recipe that does not fit the task is a finding, and the rest is examined without it."""
    settings, recipe = planned.settings, planned.recipe
    policy = planned.objects.get("model") or load_policy(settings.model, task, settings)
    known = recipe.knobs()
    suited = {**getattr(task, "defaults", {}), **getattr(policy, "defaults", {})}
    knobs = {**known, **{name: value for name, value in suited.items() if name in known}, **planned.knobs}
    patient = Patient(task, policy, recipe, knobs, settings)
    teacher = planned.objects.get("teacher")
    try:
        teacher = teacher or (load_policy(settings.teacher, task, settings) if settings.teacher else None)
        state = State(task, {"policy": policy}, settings.seed, knobs=knobs)
        build(recipe, state, {"teacher": teacher})
    except QuatrainError as refusal:
        return replace(patient, recipe=None), [refused("recipe fits the task", refusal)]
    models = {name: model for name, model in state.models.items() if name != "policy"}
    columns = sorted({name for loss in patient.objectives for name in loss.needs()})
    return replace(patient, models=models), [
        ok("recipe fits the task", f"{recipe.name or 'the recipe'} reads {', '.join(columns) or 'no columns'}: all provided")
    ]


def examine(patient: Patient, found: list[Finding] | None = None, seconds: dict[str, float] | None = None) -> Examination:
    """Every check that makes sense for this patient."""
    findings, seconds = list(found or []), dict(seconds or {})
    checks = (gradients.check_collects, *(TEXT if patient.is_text else CONTROL), *BOTH)
    for check in checks:
        began = perf_counter()
        name = check.__name__.removeprefix("check_").replace("_", " ")
        told = {finding.seen for finding in findings if finding.severity != OK}
        findings += [finding for finding in attempt(name, check, patient) if finding.seen not in told]  # one cause, one finding
        seconds[name] = perf_counter() - began
    return Examination(about(patient), tuple(findings), seconds)


def attempt(name: str, check: Check, patient: Patient) -> list[Finding]:
    findings: list[Finding] = []
    try:
        for finding in check(patient):
            findings.append(finding)
    except QuatrainError as refusal:
        findings.append(refused(name, refusal))
    except Exception as failure:  # the boundary to a user's model, task and parts: whatever they raise is reported with its place
        frame = traceback.extract_tb(failure.__traceback__)[-1]
        findings.append(
            error(
                name,
                f"it ended with {type(failure).__name__}: {failure} ({Path(frame.filename).name}:{frame.lineno})",
                "a run would end in the same way",
                "look at the place named",
            )
        )
    return findings


def refused(name: str, refusal: QuatrainError) -> Finding:
    seen = refusal.what + (f" (given: {refusal.given})" if refusal.given is not None else "")
    return error(
        name, seen, f"expected: {refusal.expected}" if refusal.expected is not None else "a run would stop here", str(refusal.fix or "")
    )


def about(patient: Patient) -> dict[str, str]:
    trained = [p for p in patient.policy.module.parameters() if p.requires_grad]
    count, every = sum(p.numel() for p in trained), sum(p.numel() for p in patient.policy.module.parameters())
    model = getattr(getattr(patient.policy, "backbone", patient.policy), "model", patient.policy)
    return {
        "model": f"{type(model).__name__}, {every:,} weights, {count:,} trained, {patient.tolerance.dtype}",
        "task": patient.task.name,
        "recipe": (patient.recipe.name or "unnamed") if patient.recipe else "none that fits",
        "sampling": f"{sampler.describe(patient.sampling)}, max_actions {patient.sampling.max_actions}",
    }
