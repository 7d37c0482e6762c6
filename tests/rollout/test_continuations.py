"""Documents, the places where they are cut, and what a continuation is worth."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.knobs import resolve
from quatrain.models.causal_lm import CausalLM
from quatrain.rewards.continuation import agreement, resemblance
from quatrain.rollout.continuations import Continuations
from quatrain.rollout.documents import whole_documents
from quatrain.rollout.edits import AddDemonstrations
from quatrain.rollout.positions import chosen, pooled
from quatrain.rollout.sources import Demonstrations, OnPolicy
from quatrain.tasks.letters import letters
from quatrain.training.state import State
from tests.models.test_delta_net import delta_policy
from tests.tiny_models import tiny_model

TASK = letters("letters:recall?levels=1")


# -- places --------------------------------------------------------------------------------------------------------------
def test_pooling_by_hand():
    value, mask = torch.tensor([[1.0, 2.0, 6.0, 7.0], [4.0, 0.0, 0.0, 9.0]]), torch.tensor([[True] * 4, [True, True, False, False]])
    assert pooled(value, mask, 1).tolist() == [[1, 2, 6, 7], [4, 0, 0, 0]]
    for width in (2, 3):  # an even width is one more
        assert pooled(value, mask, width).tolist() == [[1.5, 3, 5, 6.5], [2, 2, 0, 0]]


@pytest.mark.parametrize("choice", ["entropy", "uniform", "argmax", "argmin"])
def test_one_place_in_every_chunk(choice):
    """Of 23 and 9 tokens, four to follow: 20 and 6 places. The second has five chunks of one or two."""
    lengths = torch.tensor([23, 9, 3])
    score = torch.randn(3, 25, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        row, place = chosen(score, lengths, 5, 4, choice, 1.0, seed)
        assert row.tolist() == [0] * 5 + [1] * 5
        assert (place[:5] // 4).tolist() == [0, 1, 2, 3, 4] and (place[5:] * 5 // 6).tolist() == [0, 1, 2, 3, 4]
    if choice in ("argmax", "argmin"):
        wanted = getattr(score[0, :20].view(5, 4), choice)(1) + 4 * torch.arange(5)
        assert place[:5].tolist() == wanted.tolist()


@pytest.mark.parametrize(("choice", "temperature"), [("entropy", 1.0), ("entropy", 0.5), ("uniform", 1.0)])
def test_frequencies_are_the_softmax_of_the_score(choice, temperature):
    score = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0, 3.0, 1.0, 0.0]).expand(20_000, 8)
    row, place = chosen(score, torch.full((20_000,), 8), 2, 1, choice, temperature, 3)
    for chunk in (0, 1):
        seen = torch.bincount(place[chunk::2] - 4 * chunk, minlength=4) / 20_000
        wanted = torch.full((4,), 0.25) if choice == "uniform" else (score[0, 4 * chunk : 4 * chunk + 4] / temperature).softmax(0)
        assert (seen - wanted).abs().max() < 4 * (0.25 / 20_000) ** 0.5
    assert torch.equal(row, torch.arange(20_000).repeat_interleave(2))


# -- rewards -------------------------------------------------------------------------------------------------------------
def test_rewards_by_hand():
    tokens, mask = torch.tensor([[7, 8, 9], [7, 8, 9]]), torch.tensor([[True] * 3, [True, False, False]])
    truth = torch.tensor([[7, 8, 9, 4], [7, 8, 9, 4]])
    assert agreement(tokens, mask, truth).tolist() == [0.75, 0.25]
    states = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [-1.0, 0.0]]])
    real = torch.tensor([[[2.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    assert resemblance(states, torch.ones(2, 2, dtype=torch.bool), real).tolist() == pytest.approx([(1 + 0.5**0.5) / 2, 0.0])


def collect(policy: CausalLM, **options):
    state = State(TASK, {"policy": policy})
    return state, resolve(Continuations(whole=OnPolicy(group=3, prompts=4), **options), {})(state)


def test_a_perfect_continuation_is_worth_one():
    """Cosine and agreement of the document's own tokens; both fall when one of them is changed."""
    policy = delta_policy()
    state = State(TASK, {"policy": policy})
    documents = whole_documents(policy, TASK.demonstrations(policy, TASK.starts("train", 0, 2)))
    texts = torch.cat([documents.contexts["policy"]["tokens"], documents.actions], 1).tolist()
    row, place = torch.tensor([0, 1]), torch.tensor([5, 9])
    ahead = place[:, None] + torch.arange(4)
    true = documents.actions[row[:, None], ahead].tolist()
    prompts = [texts[r][: p + 1] for r, p in zip(row.tolist(), place.tolist(), strict=True)]
    own = policy.demonstrate(prompts, true)
    worth = {name: Continuations(4, name).rewarded(policy, own, documents, row[:, None], ahead) for name in ("cosine", "binary", "hybrid")}
    assert worth["binary"].tolist() == [1.0, 1.0] and worth["cosine"].tolist() == pytest.approx([1.0, 1.0])
    assert worth["hybrid"].tolist() == pytest.approx([2.0, 2.0])
    other = policy.demonstrate(prompts, [[text[0], text[1] % 30 + 5, *text[2:]] for text in true])
    assert Continuations(4, "binary").rewarded(policy, other, documents, row[:, None], ahead).tolist() == [0.75, 0.75]
    assert (Continuations(4, "cosine").rewarded(policy, other, documents, row[:, None], ahead) < 0.999).all()
    assert state.step == 0


def test_documents_are_cut_and_continued():
    policy = delta_policy()
    state, batch = collect(policy, length=4, reward="binary")
    starts = TASK.starts("train", 0, 4)
    assert len(batch) == 12 and batch["prompt"].tolist() == [start.id for start in starts for _ in range(3)]
    assert batch.shape[1] <= 4 and state.spent["trajectories"] == 12 and state.spent["tokens"] == int(batch.mask.sum())
    for row, start in enumerate(batch.notes["start"]):
        text = start.prompt + start.solution
        seen, wanted = batch.notes["prompt"][row], batch.notes["answer"][row]
        assert text.startswith(seen) and text[len(seen) : len(seen) + 4] == wanted and len(wanted) in (3, 4)  # the end is no text
        kept = policy.decode(batch.contexts["policy"]["tokens"][row][batch.contexts["policy"]["mask"][row]])
        assert kept == seen
    _, again = collect(delta_policy(), length=4, reward="binary")
    assert torch.equal(again.actions, batch.actions) and torch.equal(again["reward"], batch["reward"])


def test_whole_documents_are_learnt_from_their_second_token_on():
    policy, task = delta_policy(), TASK
    state = State(task, {"policy": policy})
    batch = Demonstrations(prompts=3, whole=True)(state)
    for row, start in enumerate(task.starts("train", 0, 3)):
        document = [*policy.encode(start.prompt), *policy.encode_completion(start.solution)]
        assert batch.actions[row][batch.mask[row]].tolist() == document[1:] and batch["prompt"][row] == start.id
        assert batch.contexts["policy"]["tokens"][row].tolist() == document[:1]
    _, rolled = collect(policy, length=4, reward="cosine")
    both = AddDemonstrations(whole=True)(State(task, {"policy": policy}), rolled)
    assert len(both) == 12 + 4 and both["reward"].isnan().tolist() == [False] * 12 + [True] * 4
    assert both.lengths[12:].tolist() == [len(start.prompt + start.solution) for start in task.starts("train", 0, 4)]


def test_refusals():
    with pytest.raises(QuatrainError, match="unknown reward"):
        Continuations(reward="rouge")
    with pytest.raises(QuatrainError, match="unknown choice"):
        Continuations(choice="best")
    with pytest.raises(QuatrainError, match="length and a temperature"):
        Continuations(length=0)
    policy = delta_policy()
    with pytest.raises(QuatrainError, match="long enough"):
        collect(policy, length=99)
    policy.__class__ = type("Other", (), {"encode": CausalLM.encode})
    with pytest.raises(QuatrainError, match="causal language model"):
        collect(policy)


def test_transformers_are_continued_alike():
    """A model of attention has states as well; the tree of rows that begin alike gives the same."""
    from tests.tiny_models import tiny_tokenizer

    tokens = tiny_tokenizer()
    policy = CausalLM(tiny_model(vocabulary=len(tokens)), tokens)
    prompt = policy.encode("a3" * 20)
    batch = policy.demonstrate([prompt] * 6, ["12", "34", "12", "1", "", "345"])
    states = policy.action_states(batch)
    alone = torch.stack([states.new_zeros(states.shape[1:])] * 6)
    for row in range(6):
        one = batch.take([row])
        alone[row] = policy.action_states(one)[0]
    torch.testing.assert_close(states, alone, atol=1e-4, rtol=1e-4)
