"""opsd: autograd of the capped divergence to the informed self, its limits, and that nothing flows into the teacher."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective
from quatrain.models.causal_lm import CausalLM
from quatrain.parts.likelihoods import Divergence
from quatrain.training.registry import make
from quatrain.training.steps import Sync
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.toy import Case, assert_same, autograd, case, gradient


def entries(here: Case, beta: float, top: int) -> Tensor:
    """[N, T, V] of the released code's divergence."""
    p, q = here.policy.table[here.batch["state"]], here.others["teacher"].table.detach()[here.batch["state"]]
    if top:
        best = q.topk(top).indices
        p, q = p.gather(-1, best), q.gather(-1, best)
    p, q = p.softmax(-1), q.softmax(-1)
    m = (1 - beta) * p + beta * q
    if beta in (0, 1):
        return q * (q / p).log() if beta == 0 else p * (p / q).log()
    return beta * q * (q / m).log() + (1 - beta) * p * (p / m).log()


def average(value: Tensor, here: Case, mean: str) -> Tensor:
    mask = here.batch.mask
    value = torch.where(mask, value, 0.0)
    return (value.sum(1) / mask.sum(1)).mean() if mean == "sequence" else value.sum() / mask.sum()


@pytest.mark.parametrize("mean", ["sequence", "token"])
@pytest.mark.parametrize(("beta", "clip", "top"), [(0.5, 0.05, 0), (0.5, 0.0, 0), (0.0, 0.0, 0), (1.0, 0.02, 0), (0.3, 0.05, 2)])
def test_the_gradient(beta: float, clip: float, top: int, mean: str):
    for seed in (0, 1):
        here = case(seed)
        loss = average(entries(here, beta, top).clamp(max=clip or inf).sum(-1), here, mean)
        assert_same(gradient(make("opsd", beta=beta, clip=clip, top=top, mean=mean), here), autograd(loss, here))


@pytest.mark.parametrize("mean", ["sequence", "token"])
def test_the_gradient_of_the_sampled_variant(mean: str):
    here = case(3)
    advantage = (here.clean("teacher_logp") - here.logp()).detach()
    found = gradient(make("opsd", sampled=True, mean=mean), here)
    assert_same(found, autograd(-average(advantage * here.logp(), here, mean), here))


def test_on_average_the_sampled_variant_is_the_reverse_divergence():
    """Σ_a p(a) (log q(a) − log p(a)) ∇log p(a) = −∇KL(p‖q): every action of one state, weighed by its probability."""
    here = case(0)
    q = here.others["teacher"].table[0].log_softmax(-1).detach()
    p, again = (here.policy.table[0].log_softmax(-1) for _ in range(2))
    weight = (p.exp() * (q - p)).detach()
    assert_same(-autograd((weight * p).sum(), here), autograd((again.exp() * (again - q)).sum(), here), 1e-12)


def test_without_a_cap_and_with_one_mean_it_is_distillation():
    here = case(2)
    for beta, kind in ((0.0, "forward"), (0.5, "jsd"), (1.0, "reverse")):
        assert torch.equal(gradient(make("opsd", beta=beta, clip=0.0, mean="token"), here), gradient(make("opd", kind=kind), here))


def test_equal_contexts_teach_nothing_and_a_small_cap_makes_the_loss_negative():
    here = case()
    for beta, sign in ((0.0, -1), (0.5, 1), (1.0, -1)):  # a mixture's entries are convex in (p, q), and none is negative
        ((_, fit),) = make("opsd", beta=beta, clip=0.001).fits(Objective)
        loss, _ = fit.loss.loss(here.policy, fit.loss.finalise(fit.loss.prepare(here.batch)), here.others)
        assert sign * loss.item() > 0
    here.others["teacher"] = here.policy.clone()
    same = replace(here, batch=here.batch.with_columns(teacher_logp=here.logp().detach()))
    for options in ({}, {"beta": 0.0}, {"beta": 1.0, "clip": 0.0}, {"sampled": True}):
        assert gradient(make("opsd", **options), same).abs().max() < 1e-15


def test_nothing_flows_into_the_teacher_even_where_it_is_the_student():
    """A language model in two contexts at once: the gradient is the one against a copy, and that copy gets none."""
    model = CausalLM(tiny_model(dtype=torch.float64), tiny_tokenizer())
    context = {"tokens": torch.tensor([[5, 6, 7]]), "mask": torch.ones(1, 3, dtype=torch.bool)}
    batch = Batch(torch.ones(1, 4, dtype=torch.bool), torch.tensor([[8, 9, 10, 11]]), contexts={"policy": context})
    informed = {"tokens": torch.tensor([[9, 9, 5, 6, 7]]), "mask": torch.ones(1, 5, dtype=torch.bool)}
    batch, statistic = batch.with_context("teacher", **informed), Divergence("teacher", "jsd", 0.5, 0.05)
    twin = model.clone()
    twin.module.requires_grad_(True)
    weights, copies = list(model.module.parameters()), list(twin.module.parameters())
    found = torch.autograd.grad(model.score(batch, [statistic], others={"teacher": model})[statistic].sum(), weights)
    value = model.score(batch, [statistic], others={"teacher": twin})[statistic]
    expected = torch.autograd.grad(value.sum(), [*weights, *copies], allow_unused=True)
    assert all(torch.equal(one, two) for one, two in zip(found, expected[: len(weights)], strict=True))
    assert all(slope is None for slope in expected[len(weights) :]) and float(value.abs().max()) > 0
    apart = model.score(batch.with_context("teacher", **context), [statistic], others={"teacher": model})[statistic]
    assert apart.abs().max() < 1e-12  # the same context: nothing to learn


def test_who_teaches():
    steps = {teacher: make("opsd", teacher=teacher).stages[0].steps for teacher in ("fixed", "current", "average")}
    assert [len(found) for found in steps.values()] == [2, 3, 3]
    assert steps["current"][2] == Sync("policy", "teacher", 1.0)
    assert steps["average"][2].rate == pytest.approx(0.001)
