"""opd: autograd of the divergence between whole distributions, the states held."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.training.registry import make
from tests.toy import assert_same, autograd, case, gradient


def divergence(p: torch.Tensor, q: torch.Tensor, kind: str) -> torch.Tensor:
    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum(-1)

    middle = (p + q) / 2
    return {"reverse": kl(p, q), "forward": kl(q, p), "jsd": (kl(p, middle) + kl(q, middle)) / 2}[kind]


@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, kind: str):
    here = case(seed)
    state = here.batch["state"][here.batch.mask]
    p = here.policy.table.softmax(-1)[state]
    q = here.others["teacher"].table.softmax(-1)[state].detach()
    assert_same(gradient(make("opd", kind=kind), here), autograd(divergence(p, q, kind).mean(), here))


def test_at_the_teacher_there_is_nothing_to_learn():
    here = case()
    here.others["teacher"] = here.policy.clone()
    for kind in ("reverse", "forward", "jsd"):
        assert gradient(make("opd", kind=kind), here).abs().max() < 1e-15


def test_an_unknown_divergence_is_refused():
    with pytest.raises(QuatrainError, match="wrong type"):
        make("opd", kind="hellinger")
