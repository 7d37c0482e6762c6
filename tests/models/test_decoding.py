"""Rows come, go on, are continued and change their weights half-way; none of it changes what a row says."""

from __future__ import annotations

import copy

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models import living
from quatrain.models.backbone import split
from quatrain.models.decoding import Decoding, Samples, Stops
from quatrain.models.memory import prefill
from quatrain.protocols import Sampling
from tests.tiny_models import tiny_model

PROMPTS = [prompt for prompt in ([5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]) for _ in range(6)]
SEEDS = torch.arange(18) + 7
STOPS = Stops((1, 2, 3))
kinds = pytest.mark.parametrize("kind", ["qwen3", "gpt2", "window"])


def model_of(kind: str):
    """A model of the fast step, one that goes through its own, and one whose cache is its own too."""
    if kind != "window":
        return tiny_model(kind)
    import transformers

    config = transformers.MistralConfig(
        vocab_size=51, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64,
        sliding_window=4, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def begin(model, stops: Stops = STOPS, **options) -> Decoding:
    return Decoding(split(model), Sampling(max_actions=20), stops, **options)


def to_the_end(decoding: Decoding, tokens: int = 20) -> None:
    while decoding.live:
        decoding.advance(tokens)


def whole(model, stops: Stops = STOPS, **options) -> Samples:
    decoding = begin(model, stops, **options)
    ids = decoding.admit(PROMPTS, SEEDS)
    to_the_end(decoding)
    return decoding.take(ids)


def assert_equal(found: Samples, expected: Samples) -> None:
    for name in ("tokens", "mask", "truncated"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.logp, expected.logp, rtol=0, atol=1e-5)


@kinds
@pytest.mark.parametrize("shared_from", [2, 100])
def test_rows_that_enter_in_pieces_say_the_same(kind: str, shared_from: int, monkeypatch) -> None:
    monkeypatch.setattr(living, "SHARED_FROM", shared_from)
    model, ids, entered = model_of(kind), [], 0
    here = begin(model)
    while here.live or entered < 18:
        if entered < 18:
            ids += here.admit(PROMPTS[entered : entered + 5], SEEDS[entered : entered + 5])
            entered += 5
        here.advance(3)
        if entered == 10:  # cut and resumed
            resumed = begin(model)
            resumed.load_state_dict(copy.deepcopy(here.state_dict()))
            here = resumed
    assert_equal(here.take(ids), whole(model))
    assert not here.ids and not here.live


@pytest.mark.parametrize("refill", [0.0, 0.5, 0.85])
def test_room_and_refill_change_nothing(refill: float) -> None:
    model, widths = tiny_model("gpt2"), []
    model.get_decoder().register_forward_pre_hook(lambda module, args, kw: widths.append(kw["input_ids"].shape), with_kwargs=True)
    assert_equal(whole(model, room=7, refill=refill), whole(model))
    assert max(rows for rows, width in widths if width == 1) <= 18


def test_two_calls_are_one_bit_for_bit() -> None:
    model = tiny_model("qwen3")
    for share in (1, 3):
        here = begin(model)
        ids = here.admit(PROMPTS, SEEDS)
        to_the_end(here, share)
        assert torch.equal(here.take(ids).logp, whole(model).logp)


@kinds
def test_cut_and_resumed_after_every_token_it_is_the_same_bit_for_bit(kind: str) -> None:
    """Where the memory is ours; another cache is computed again, equal up to rounding."""
    model = model_of(kind)
    straight, hops = begin(model), begin(model)
    ids = straight.admit(PROMPTS, SEEDS)
    hops.admit(PROMPTS, SEEDS)
    while straight.live:
        straight.advance(1)
        hops.advance(1)
        resumed = begin(model)
        resumed.load_state_dict(hops.state_dict())
        hops = resumed
    assert straight.finished() == ids
    one, other = straight.take(ids), hops.take(ids)
    assert_equal(other, one)
    assert kind == "window" or torch.equal(one.logp, other.logp)


@kinds
@pytest.mark.parametrize("shared_from", [2, 100])
def test_a_fork_goes_on_from_its_parents_beginning(kind: str, shared_from: int, monkeypatch) -> None:
    monkeypatch.setattr(living, "SHARED_FROM", shared_from)
    model = model_of(kind)
    here = begin(model, Stops(()))
    ids = here.admit(PROMPTS, SEEDS)
    here.advance(6)
    calls = []
    handle = model.get_decoder().register_forward_pre_hook(lambda module, args, kw: calls.append(kw["input_ids"].shape), with_kwargs=True)
    twins = here.fork(ids[:4] * 2, torch.arange(8))
    assert not calls  # nothing is computed again
    early = here.fork(ids[:2], torch.tensor([50, 50]), at=[3, 0])
    assert here.lengths(twins) == [6] * 8 and here.lengths(early) == [3, 0]
    to_the_end(here, 4)
    handle.remove()
    parents, forks = here.read(ids[:4]), here.read(twins)
    assert torch.equal(forks.tokens[:4, :6], parents.tokens[:, :6]) and torch.equal(forks.logp[4:, :6], parents.logp[:, :6])
    assert not torch.equal(forks.tokens[:4], forks.tokens[4:])
    with pytest.raises(QuatrainError, match="has ended"):
        here.fork(ids[:1], torch.tensor([1]))
    said = here.read(here.ids)
    for prompt, tokens, logp in zip(here.transcript.prompts, said.tokens, said.logp, strict=True):
        scored = model(torch.tensor([[*prompt, *tokens.tolist()]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(scored.gather(-1, tokens[:, None])[:, 0], logp, rtol=0, atol=2e-5)
    alone = begin(model, Stops(()))
    again = alone.admit(PROMPTS[:1], SEEDS[:1])
    alone.advance(6)
    fork = alone.fork(again, torch.tensor([4]))
    to_the_end(alone)
    assert torch.equal(alone.take(fork).tokens[0], forks.tokens[4])  # its seed decides, whoever else there is


def test_rows_taken_alive_are_cut_and_the_others_stay_as_they_are() -> None:
    model = tiny_model()
    here = begin(model)
    ids = here.admit(PROMPTS, SEEDS)
    here.advance(2)
    cut = here.take(ids[1::2])
    assert cut.mask.shape[1] <= 2 and bool(cut.truncated.any())
    to_the_end(here)
    expected = whole(model)
    found = here.take(ids[::2])
    assert torch.equal(found.tokens, expected.tokens[::2, : found.tokens.shape[1]])
    with pytest.raises(QuatrainError, match="not here"):
        here.read(ids[:1])


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize("recompute", [False, True])
def test_new_weights_decide_from_the_next_token_on(kind: str, recompute: bool) -> None:
    """Each log-probability is that of the weights of its version, on the keys and values that were left (or computed again)."""
    model = tiny_model(kind)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    new, old = other.state_dict(), copy.deepcopy(model.state_dict())
    here = begin(model, Stops(()))
    ids = here.admit(PROMPTS, SEEDS)
    here.advance(8)
    before = here.read(ids)
    model.load_state_dict(new)
    here.renew(1, recompute)
    late = here.admit(PROMPTS[:1], SEEDS[:1])
    to_the_end(here)
    found = here.read(ids)
    assert torch.equal(found.tokens[:, :8], before.tokens) and torch.equal(found.logp[:, :8], before.logp)
    assert found.version[:, :8].eq(0).all() and found.version[:, 8:].eq(1).all() and here.read(late).version.eq(1).all()
    for row in (0, 7, 17):
        tokens, prompt = found.tokens[row], PROMPTS[row]
        model.load_state_dict(old)
        hidden, memory = prefill(split(model), [prompt], 0, 100)
        for step, token in enumerate(tokens.tolist()):
            if step == 8:
                model.load_state_dict(new)
                if recompute:
                    _, memory = prefill(split(model), [[*prompt, *tokens[:7].tolist()]], 0, 100)
            with torch.no_grad():
                if step:
                    hidden = memory.advance(tokens[step - 1 : step], None)
                expected = split(model).logits(hidden)[0].log_softmax(-1)[token]
            torch.testing.assert_close(found.logp[row, step], expected, rtol=0, atol=1e-5)


def test_top_p_and_stop_texts_survive_interruptions() -> None:
    model = tiny_model()
    letters = "".join(chr(97 + i % 26) for i in range(51))
    stops = Stops((0,), ("ab", "d"), lambda row: "".join(letters[token] for token in row), torch.tensor([c in "bd" for c in letters]))
    sampling = Sampling(max_actions=20, top_p=0.9, temperature=0.8)
    results = []
    for tokens in (20, 1):
        here = Decoding(split(model), sampling, stops)
        ids = here.admit(PROMPTS, SEEDS)
        to_the_end(here, tokens)
        results.append(here.take(ids))
    assert_equal(results[1], results[0])
    width = min(result.support.shape[2] for result in results)
    assert torch.equal(results[0].support[..., :width], results[1].support[..., :width])
