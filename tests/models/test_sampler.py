"""The sampler: greedy equals generate, distributions are exact, rows are addressable, nothing is computed twice."""

from __future__ import annotations

import itertools

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models import living
from quatrain.models.backbone import split
from quatrain.models.sampler import Samples, Stops, sample
from quatrain.protocols import Sampling
from tests.tiny_models import ARCHITECTURES, tiny_model

PROMPTS = {"padded": [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]], "equal": [[5, 6, 7], [8, 9, 10], [5, 6, 7]]}
NEVER = Stops(())


def run(model, prompts=PROMPTS["padded"], group=2, stops=NEVER, seeds=None, max_rows=None, **sampling) -> Samples:
    seeds = torch.arange(len(prompts) * group) + 100 if seeds is None else seeds
    return sample(split(model), prompts, group, Sampling(**sampling), seeds, stops, max_rows=max_rows)


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate(architecture: str, tied: bool, prompts: str) -> None:
    model = tiny_model(architecture, tied=tied)
    rows = PROMPTS[prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = (torch.arange(longest) >= torch.tensor([[longest - len(row)] for row in rows])).long()
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False, eos_token_id=[1, 16], pad_token_id=0)[
        :, longest:
    ]
    ours = run(model, rows, 1, Stops((1, 16)), temperature=0.0, max_actions=24)
    assert torch.equal(ours.tokens, expected)
    assert ours.mask.sum(1).tolist() == [next((i + 1 for i, t in enumerate(row) if t in (1, 16)), len(row)) for row in expected.tolist()]


@pytest.mark.parametrize("kind", ["gemma2", "mistral"])
def test_sliding_windows_go_through_the_models_own_cache(kind: str) -> None:
    import transformers

    config = {"gemma2": transformers.Gemma2Config, "mistral": transformers.MistralConfig}[kind](
        vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64,
        sliding_window=4, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])
    expected = model.generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=12, do_sample=False, pad_token_id=0)[:, 6:]
    assert torch.equal(run(model, [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14]], 1, temperature=0.0, max_actions=12).tokens, expected)


def exact(model, prompt: list[int], steps: int, size: int) -> torch.Tensor:
    """[size ** steps] probability of every continuation, by enumeration with full forwards."""
    endings = list(itertools.product(range(size), repeat=steps))
    ids = torch.tensor([[*prompt, *ending] for ending in endings])
    with torch.no_grad():
        logp = model(ids).logits[:, len(prompt) - 1 : -1].double().log_softmax(-1)
    return logp.gather(-1, ids[:, len(prompt) :, None]).sum((1, 2)).exp()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_distribution_is_exact(architecture: str) -> None:
    model, count = tiny_model(architecture, vocabulary=4, hidden=16, layers=1), 20_000
    samples = run(model, [[0, 1, 2]], count, max_actions=3)
    expected = count * exact(model, [0, 1, 2], 3, 4)
    observed = torch.bincount((samples.tokens * torch.tensor([16, 4, 1])).sum(1), minlength=64)
    chi_square = ((observed - expected).square() / expected).sum().item()
    assert chi_square < 113  # 63 degrees of freedom, p = 1e-4
    index = (samples.tokens * torch.tensor([16, 4, 1])).sum(1)
    torch.testing.assert_close(samples.logp.sum(1).exp().double(), expected[index] / count, rtol=1e-5, atol=0)


def test_the_truncated_distribution_is_exact() -> None:
    model, count = tiny_model(vocabulary=6, hidden=16, layers=1), 20_000
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)  # flatter, so that some but not all of the four candidates stay
    samples = run(model, [[0, 1, 2]], count, max_actions=1, temperature=0.7, top_k=4, top_p=0.8)
    with torch.no_grad():
        probability = (model(torch.tensor([[0, 1, 2]])).logits[0, -1].double() / 0.7).softmax(-1)
    value, index = probability.topk(4)
    value = value / value.sum()
    kept = int((value.cumsum(0) < 0.8).sum()) + 1
    expected = torch.zeros(6, dtype=torch.float64).scatter(0, index[:kept], value[:kept] / value[:kept].sum())
    observed = torch.bincount(samples.tokens[:, 0], minlength=6)
    assert observed[expected == 0].sum() == 0 and 1 < kept < 4
    chi_square = ((observed - count * expected).square()[expected > 0] / (count * expected[expected > 0])).sum().item()
    assert chi_square < 19  # at most 3 degrees of freedom, p < 1e-3
    torch.testing.assert_close(samples.logp[:, 0].double(), expected[samples.tokens[:, 0]].log(), rtol=0, atol=1e-5)
    assert (samples.support[0, 0] - 1).tolist() == index[:kept].tolist()


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9, "temperature": 0.7}])
def test_a_row_regenerates_alone_and_in_any_company(options: dict) -> None:
    model, stops = tiny_model(), Stops(tuple(range(1, 9)))
    seeds = torch.randint(2**60, (18,), generator=torch.Generator().manual_seed(0))
    together = run(model, group=6, seeds=seeds, stops=stops, max_actions=20, **options)
    assert together.mask.sum(1).min() < together.mask.shape[1]  # some rows left early, so the batch was compacted
    for row in range(18):
        alone = run(model, [PROMPTS["padded"][row // 6]], 1, seeds=seeds[row : row + 1], stops=stops, max_actions=20, **options)
        length = int(together.mask[row].sum())
        assert alone.tokens[0].tolist() == together.tokens[row, :length].tolist() and not together.tokens[row, length:].any()
        torch.testing.assert_close(alone.logp[0], together.logp[row, :length], rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_rows", [1, 4, 7, 100])
def test_blocks_of_rows_change_nothing(max_rows: int) -> None:
    model, stops, options = tiny_model("llama"), Stops((1, 2, 3)), {"top_k": 5, "max_actions": 10}
    whole, parts = run(model, group=5, stops=stops, **options), run(model, group=5, stops=stops, max_rows=max_rows, **options)
    for name in ("tokens", "mask", "truncated", "support"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name
    torch.testing.assert_close(whole.logp, parts.logp, rtol=0, atol=1e-5)


def test_prompts_are_prefilled_once_and_finished_rows_leave() -> None:
    model, shapes = tiny_model(), []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    samples = run(model, [*PROMPTS["padded"], PROMPTS["padded"][0]], 16, Stops(tuple(range(1, 17))), max_actions=15)
    assert shapes[0] == (3, 6) and all(shape[1] == 1 for shape in shapes[1:])
    assert len(shapes) <= samples.mask.shape[1]
    alive = [int((samples.mask.sum(1) > step).sum()) for step in range(1, len(shapes))]
    parted = [distinct(samples, [*PROMPTS["padded"], PROMPTS["padded"][0]], step) for step in range(1, len(shapes))]
    assert all(rows * 0.85 <= max(left, 1) for (rows, _), left in zip(shapes[1:], alive, strict=True))
    assert all(rows >= own for (rows, _), own in zip(shapes[1:], parted, strict=True))
    assert shapes[-1][0] < 16


def distinct(samples: Samples, prompts: list[list[int]], step: int) -> int:
    """How many different beginnings of that many tokens, prompt included, the samples have that go on after them."""
    group, going = len(samples.tokens) // len(prompts), (samples.mask.sum(1) > step).nonzero()[:, 0].tolist()
    return len({(*prompts[row // group], -1, *samples.tokens[row, :step].tolist()) for row in going})


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9, "temperature": 0.7}, {"temperature": 0.0}])
@pytest.mark.parametrize("prompts", ["equal", "padded"])
def test_samples_are_one_row_until_they_part(prompts: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes, stops = tiny_model(vocabulary=20), [], Stops((1, 2))
    apart = run(model, PROMPTS[prompts], 12, stops, max_actions=20, **options)
    monkeypatch.setattr(living, "SHARED_FROM", 2)
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    joined = run(model, PROMPTS[prompts], 12, stops, max_actions=20, **options)
    assert torch.equal(apart.tokens, joined.tokens) and torch.equal(apart.mask, joined.mask)
    torch.testing.assert_close(apart.logp, joined.logp, rtol=0, atol=1e-5)
    parted = [distinct(joined, PROMPTS[prompts], step) for step in range(1, len(shapes))]
    assert all(own <= rows and rows * 0.85**2 <= max(own, 1) for (rows, _), own in zip(shapes[1:], parted, strict=True))
    assert shapes[1][0] < len(joined.tokens)


def test_stop_texts_end_rows_and_only_candidates_are_decoded() -> None:
    model, decoded = tiny_model(), []
    letters = "".join(chr(97 + i % 26) for i in range(51))

    def decode(tokens: list[int]) -> str:
        decoded.append(tokens)
        return "".join(letters[token] for token in tokens)

    could = torch.tensor([letter in "bd" for letter in letters])
    samples = run(model, group=40, stops=Stops((0,), ("ab", "d"), decode, could), max_actions=30)
    for row, mask, cut in zip(samples.tokens, samples.mask, samples.truncated, strict=True):
        text, last = "".join(letters[token] for token in row[mask].tolist()), row[mask][-1].item()
        assert "ab" not in text[:-1] and "d" not in text[:-1] and 0 not in row[mask][:-1].tolist()
        assert bool(cut) == (not (last == 0 or text.endswith(("ab", "d")))) and (not cut or len(text) == 30)
    assert decoded and all(letters[tokens[-1]] in "bd" for tokens in decoded)


def test_impossible_requests_are_refused() -> None:
    model = tiny_model("gpt2")
    for prompts, options, match in (
        ([[]], {}, "no token"),
        ([], {}, "no token"),
        ([[1]], {"top_p": 0.0}, "top_p"),
        ([[1]], {"temperature": -1.0}, "temperature"),
        ([[1] * 500], {"max_actions": 20}, "do not fit"),
    ):
        with pytest.raises(QuatrainError, match=match):
            run(model, prompts, 1, **options)
