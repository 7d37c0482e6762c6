"""The sampler and the trainer disagree; weights never arrive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quatrain.protocols import Sampling
from tests.experiments.doctor.ward.planting import Plant, after, before, both, bugs, keys, recorded, rescored, stale
from tests.experiments.doctor.ward.setups import Setup, control
from tests.toy import without


def forget(name: str) -> Plant:
    """The recorded log-probability leaves out the temperature, or the truncated support; the sampler uses it."""
    return after("sample", lambda policy, batch: recorded(batch, rescored(policy, without(batch, name))))


def ignore(**changes: Any) -> Plant:
    """The sampler ignores a setting, and says so nowhere: what it records is consistent."""

    def change(prompts: Any, group: int, sampling: Sampling, seeds: Tensor) -> tuple:
        return prompts, group, replace(sampling, **changes), seeds

    return before("sample", change)


@torch.no_grad()
def other_weights(setup: Setup) -> None:
    twin = setup.policy.clone()
    g = torch.Generator().manual_seed(0)
    for parameter in twin.module.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=g).to(parameter))
    setup.policy.sample = twin.sample


def untempered_act(setup: Setup) -> None:
    """Network: acts at temperature 1 whatever was asked, and says that it did as asked."""
    true = setup.policy.act

    def act(observations: Tensor, generator: Any = None, greedy: bool = False, temperature: float = 1.0) -> Any:
        return true(observations, generator, greedy, 1.0)

    with torch.no_grad():
        setup.policy.module.trunk[-1].weight.mul_(2000.0)  # otherwise all actions are equally likely at any temperature
    setup.policy.act = act


def stale_clone(setup: Setup) -> None:
    first = setup.policy.clone()
    setup.policy.clone = lambda: first


def partial_clone(setup: Setup) -> None:
    true: Callable[[], Any] = setup.policy.clone

    def clone() -> Any:
        twin = true()
        with torch.no_grad():
            next(p for p in twin.module.parameters() if p.ndim == 1).mul_(0.999)
        return twin

    setup.policy.clone = clone


SAMPLER = bugs(
    "sampler and trainer disagree",
    {
        "temperature left out of the recorded log-probability": (forget("temperature"), "ratio is 1"),
        "top-p left out of the recorded log-probability": (forget("support"), "ratio is 1"),
        "temperature not told to the scorer": (after("sample", lambda policy, batch: without(batch, "temperature")), "ratio is 1"),
        "sampler ignores the temperature": (ignore(temperature=1.0), "distribution sampled from"),
        "sampler ignores top-p": (ignore(top_p=1.0), "distribution sampled from"),
        "sampler ignores top-k": (both(keys(top_k=5), ignore(top_k=0)), "distribution sampled from"),
        "sampler has other weights": (other_weights, "ratio is 1"),
        "sampler keeps the first weights": (stale("sample"), "sampler has the new weights"),
        "network acts at another temperature": (
            both(keys(temperature=0.5), untempered_act),
            "distribution sampled from",
            lambda: control("grpo"),
        ),
        "network acts with the first weights": (stale("act"), "sampler has the new weights", control),
    },
)
TRANSFER = bugs(
    "weights never arrive",
    {
        "a copy has the first weights": (stale_clone, "weights arrive"),
        "a copy with one tensor off by 0.1 %": (partial_clone, "weights arrive"),
        "the saved model has the first weights": (stale("save"), "weights arrive"),
        "a network's copy has the first weights": (stale_clone, "weights arrive", control),
    },
)
