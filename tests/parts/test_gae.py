"""GAE and λ-returns against hand numbers, brute-force sums, limiting cases and hostile padding."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.parts.gae import gae, lambda_returns

YES, NO = True, False


def case(n: int = 5, t: int = 23, seed: int = 0, holes: float = 0.15) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    floats = {name: torch.randn(n, t, generator=g, dtype=torch.float64) for name in ("rewards", "value", "next_value")}
    flags = {name: torch.rand(n, t, generator=g) < 0.1 for name in ("terminated", "truncated")}
    return {**floats, **flags, "mask": torch.rand(n, t, generator=g) >= holes}


def brute_force(c: dict[str, torch.Tensor], discount: float, trace: float) -> torch.Tensor:
    """A_t = Σ_k (γλ)^k δ_{t+k}, summed forward from every t until its episode or its row ends."""
    n, t_max = c["rewards"].shape
    out = torch.zeros(n, t_max, dtype=torch.float64)
    for i in range(n):
        for t in range(t_max):
            total, weight, k = 0.0, 1.0, t
            while k < t_max and c["mask"][i, t]:
                if not c["mask"][i, k]:  # passes on what follows, undiscounted
                    k += 1
                    continue
                bootstrap = 0.0 if c["terminated"][i, k] else discount * c["next_value"][i, k].item()
                total += weight * (c["rewards"][i, k].item() + bootstrap - c["value"][i, k].item())
                if c["terminated"][i, k] or c["truncated"][i, k]:
                    break
                weight, k = weight * discount * trace, k + 1
            out[i, t] = total
    return out


def test_hand_numbers():
    """γ = 0.5, λ = 0.5: δ = (1+0.5·4−2, 3+0.5·6−4, 5−6) = (1, 2, −1); A = (1+0.25·1.75, 2−0.25, −1)."""
    rewards, value, next_value = torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[2.0, 4.0, 6.0]]), torch.tensor([[4.0, 6.0, 99.0]])
    ends, never, mask = torch.tensor([[NO, NO, YES]]), torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    arguments = (rewards, value, next_value, ends, never, mask, 0.5, 0.5)
    torch.testing.assert_close(gae(*arguments), torch.tensor([[1.4375, 1.75, -1.0]]))
    torch.testing.assert_close(lambda_returns(*arguments), torch.tensor([[3.4375, 5.75, 5.0]]))


def test_truncation_keeps_the_value_and_ends_the_recursion():
    rewards, value = torch.ones(1, 2), torch.zeros(1, 2)
    next_value, first = torch.tensor([[10.0, 0.0]]), torch.tensor([[YES, NO]])
    never, mask = torch.zeros(1, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    assert gae(rewards, value, next_value, never, first, mask, 1.0, 1.0).tolist() == [[11.0, 1.0]]
    assert gae(rewards, value, next_value, first, never, mask, 1.0, 1.0).tolist() == [[1.0, 1.0]]
    assert gae(rewards, value, next_value, never, never, mask, 1.0, 1.0).tolist() == [[12.0, 1.0]]


@pytest.mark.parametrize(("discount", "trace"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.7)])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 23])
def test_equals_brute_force_sums(discount: float, trace: float, length: int):
    c = case(t=length, seed=length)
    torch.testing.assert_close(gae(**c, discount=discount, trace=trace), brute_force(c, discount, trace), rtol=1e-12, atol=1e-12)


def test_trace_zero_is_the_one_step_difference():
    c = case(holes=0.0)
    delta = c["rewards"] + 0.9 * torch.where(c["terminated"], 0.0, c["next_value"]) - c["value"]
    torch.testing.assert_close(gae(**c, discount=0.9, trace=0.0), delta)


def test_trace_one_telescopes_to_reward_to_go_whatever_the_values():
    """With next_value_t = value_{t+1} and termination at the end, the λ = 1 return does not see the critic at all."""
    c = case(holes=0.0)
    c["next_value"] = torch.cat([c["value"][:, 1:], torch.randn(5, 1, dtype=torch.float64)], 1)
    c["truncated"] = torch.zeros_like(c["truncated"])
    c["terminated"] = torch.zeros_like(c["terminated"]).index_fill(1, torch.tensor([22]), True)
    powers = 0.9 ** torch.arange(23, dtype=torch.float64)
    to_go = torch.stack([(c["rewards"][:, t:] * powers[: 23 - t]).sum(1) for t in range(23)], 1)
    torch.testing.assert_close(lambda_returns(**c, discount=0.9, trace=1.0), to_go)


def test_nothing_outside_the_mask_matters_or_leaks():
    c = case()
    clean = gae(**c)
    for name in ("rewards", "value", "next_value"):
        c[name] = torch.where(c["mask"], c[name], torch.nan)
    for name in ("terminated", "truncated"):
        c[name] = c[name] ^ ~c["mask"]
    dirty = gae(**c)
    assert torch.equal(clean, dirty)
    assert (dirty[~c["mask"]] == 0).all()
    assert (lambda_returns(**c)[~c["mask"]] == 0).all()


def test_the_value_of_a_terminal_state_may_be_anything():
    c = case(holes=0.0)
    clean = gae(**c)
    c["next_value"] = torch.where(c["terminated"], torch.nan, c["next_value"])
    assert torch.equal(clean, gae(**c))


def test_arguments_are_not_written_to():
    c = case()
    before = {name: value.clone() for name, value in c.items()}
    gae(**c)
    assert all(torch.equal(before[name], c[name]) for name in c)


@pytest.mark.parametrize("name", ["discount", "trace"])
def test_out_of_range_is_refused(name: str):
    with pytest.raises(QuatrainError, match=name):
        gae(**case(), **{name: 1.01})


def test_actions_that_are_one_decision_have_its_advantage():
    """A decision made in three actions of durations 0, 0, 1, where the critic sees the state before the decision: as if it were one."""
    g = torch.Generator().manual_seed(0)
    n, t, k = 4, 6, 3
    mask = torch.arange(t) < torch.tensor([6, 4, 1, 5])[:, None]
    rewards, value, next_value = (torch.randn(n, t, generator=g, dtype=torch.float64) for _ in range(3))
    next_value[:, :-1] = value[:, 1:]
    last = mask & (torch.arange(t) == mask.sum(1, keepdim=True) - 1)
    ended, cut = last & (torch.arange(n) % 2 == 0)[:, None], last & (torch.arange(n) % 2 == 1)[:, None]
    plain = gae(rewards, value, next_value, ended, cut, mask, 0.9, 0.8)

    def at_last(part: torch.Tensor) -> torch.Tensor:
        flat = part.new_zeros(n, t, k)
        flat[..., -1] = part
        return flat.flatten(1)

    wide = [part.repeat_interleave(k, 1) for part in (value, mask)]
    after = torch.stack([value, value, next_value], -1).flatten(1)
    duration = at_last(torch.ones_like(value))
    deep = gae(at_last(rewards), wide[0], after, at_last(ended), at_last(cut), wide[1], 0.9, 0.8, duration)
    assert torch.allclose(deep.view(n, t, k), plain[..., None].expand(n, t, k), atol=1e-12)


def test_an_option_is_discounted_by_its_duration():
    one = torch.ones(1, 2)
    ends, mask = torch.tensor([[False, True]]), torch.ones(1, 2, dtype=torch.bool)
    found = gae(one, 0 * one, 0 * one, ends, ~mask, mask, 0.5, 1.0, torch.tensor([[3.0, 1.0]]))
    assert found.tolist() == [[1 + 0.5**3, 1.0]]
