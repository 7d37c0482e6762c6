"""Products through either library, and the linear layers of a model through them, against fp64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quatrain.models import products
from quatrain.models.products import FastLinear, product


@pytest.fixture(params=["mkl", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QUATRAIN_PRODUCTS", request.param)
    monkeypatch.setattr(products, "SMALLEST", 2**14)
    products.is_onednn.cache_clear()
    yield request.param
    products.is_onednn.cache_clear()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("m, k, n", [(70, 50, 60), (3, 5000, 40), (64, 1, 2000), (1, 400, 300), (2, 3, 4), (0, 8, 9000)])
def test_it_is_the_product_whatever_the_layout(m: int, k: int, n: int, library: str) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(m, k), torch.randn(n, k)
    exact = a.double() @ b.double().T
    for left in (a, a.T.contiguous().T):
        for right in (b, b.T.contiguous().T):
            result = product(left, right)
            assert result.shape == (m, n) and (not m or relative(result.double(), exact) < 2e-6)


def test_other_types_go_the_ordinary_way(library: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        a, b = torch.randn(70, 50).to(dtype), torch.randn(60, 50).to(dtype)
        assert torch.equal(product(a, b), a @ b.T)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 30), (130,)])
def test_linear_layers_keep_value_and_gradient(shape: tuple[int, ...], bias: bool, library: str) -> None:
    torch.manual_seed(0)
    layer, x, slope = nn.Linear(32, 48, bias=bias), torch.randn(*shape, 32, requires_grad=True), torch.randn(*shape, 48)
    leaves = [x, *layer.parameters()]
    with FastLinear():
        ours = layer(x)
    if library == "onednn":
        assert "_Linear" in type(ours.grad_fn).__name__ + str(ours.grad_fn.next_functions)
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    assert relative(ours.double(), exact) < 1e-6
    mine, true = (torch.autograd.grad((value * slope).sum(), leaves) for value in (ours, exact))
    assert all(relative(a.double(), b.double()) < 1e-6 for a, b in zip(mine, true, strict=True))


def test_a_frozen_layer_gets_no_gradient(library: str) -> None:
    layer, x = nn.Linear(32, 48).requires_grad_(False), torch.randn(130, 32, requires_grad=True)
    with FastLinear():
        layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(130, -1))


@pytest.mark.slow
def test_what_is_compiled_keeps_its_own_products(library: str) -> None:
    """torch's compiler cannot lower oneDNN's product with a weight that changes."""
    seen = []

    def look(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    layer, x = nn.Linear(32, 48), torch.randn(130, 32)
    expected = layer(x)
    layer.compile(backend=look)
    with FastLinear():
        ours = layer(x)
    assert seen and not any("mkldnn" in name for name in seen)
    torch.testing.assert_close(ours, expected)
