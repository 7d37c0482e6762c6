"""Losses that depend on how a batch is cut; updates that move at a learning rate of 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from quatrain.batch import Batch
from quatrain.estimator import Objective
from quatrain.training.rules import AdamW
from quatrain.training.steps import Fit
from tests.experiments.doctor.ward.planting import Plant, bugs
from tests.experiments.doctor.ward.setups import Setup


def refit(change: Callable[[Fit], Fit]) -> Plant:
    def plant(setup: Setup) -> None:
        ((_, step),) = setup.recipe.fits(Objective)
        setup.recipe = setup.recipe.swap(step, change(step))

    return plant


def objective(kind: type[Objective]) -> Plant:
    return refit(lambda fit: replace(fit, loss=kind(fit.loss.terms)))


class PerMicroBatch(Objective):
    """The normaliser of each micro-batch is its own: the loss grows with their number."""

    def loss(self, policy: Any, batch: Batch, others: Any) -> Any:
        return super().loss(policy, self.finalise(batch), others)


class PerPaddedLength(Objective):
    """Divided by the padded length of the micro-batch."""

    def loss(self, policy: Any, batch: Batch, others: Any) -> Any:
        loss, measures = super().loss(policy, batch, others)
        return loss / batch.shape[1], measures


@dataclass(frozen=True)
class Accumulating(Fit):
    """Each micro-batch's gradient counts as often as there are micro-batches so far."""

    def gradient_parts(self, model: Any, others: Any, batch: Batch) -> Iterator[Any]:
        for part in super().gradient_parts(model, others, batch):
            yield part
            for parameter in model.module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(2.0)


@dataclass(frozen=True)
class Decaying(AdamW):
    """Weight decay that does not know the learning rate."""

    def step(self, optimizer: torch.optim.Optimizer) -> float | None:
        norm = super().step(optimizer)
        with torch.no_grad():
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.mul_(1 - 1e-4)
        return norm


def moving_buffer(setup: Setup) -> None:
    module = setup.policy.module
    module.register_buffer("seen", torch.zeros(1))
    module.get_decoder().register_forward_hook(lambda part, given, out: module.seen.add_(1) and None)


DRIFT = bugs(
    "the gap grows with learning rate 0",
    {
        "weight decay at learning rate 0": (refit(lambda fit: replace(fit, rule=Decaying())), "learning rate 0 changes nothing"),
        "a buffer that counts forwards": (moving_buffer, "learning rate 0 changes nothing"),
    },
)
SCALE = bugs(
    "loss scaled by micro-batches or processes",
    {
        "normaliser of each micro-batch": (objective(PerMicroBatch), "gradient does not depend on the cut"),
        "divided by the padded length": (objective(PerPaddedLength), "gradient does not depend on the cut"),
        "gradients multiplied while accumulating": (
            refit(lambda fit: Accumulating(**vars(fit))),
            "gradient does not depend on the cut",
        ),
    },
)
