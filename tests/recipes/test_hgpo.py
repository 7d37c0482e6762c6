"""hgpo: autograd of the two-level surrogate, a hand-made group, and that forced openings are actions like any other."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import resolve
from quatrain.models.causal_lm import CausalLM
from quatrain.parts.likelihoods import LogProb
from quatrain.parts.modes import HybridGroup, best_of_mode, preferred_mode
from quatrain.protocols import Item
from quatrain.rollout.forced import BothModes, HybridAccuracy, opening_as_action
from quatrain.rollout.sources import OnPolicy
from quatrain.tasks.text import TextTask
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.toy import Case, ToyTask, assert_same, autograd, case, gradient


def z(values: list[float]) -> list[float]:
    values = torch.tensor(values, dtype=torch.float64)
    spread = values.std() if len(values) > 1 else torch.zeros(())
    return ((values - values.mean()) / (spread + 1e-6)).tolist()


def paper(here: Case, alpha: float, margin: float, within: str, kl: float, clip: float = 0.5, group: int = 4) -> torch.Tensor:
    """The loss, prompt by prompt and row by row."""
    reward, mode, mask = here.batch["reward"].tolist(), here.batch["mode"].tolist(), here.batch.mask
    advantage = torch.zeros(here.batch.shape, dtype=torch.float64)
    for start in range(0, len(reward), group):
        rows = range(start, start + group)
        of = {m: [i for i in rows if mode[i] == m] for m in (0, 1)}
        mean = {m: sum(reward[i] for i in of[m]) / len(of[m]) for m in of}
        winner = 0 if mean[0] > mean[1] + margin else 1
        intra = {i: float(reward[i] == max(reward[k] for k in of[mode[i]])) for i in rows}
        cells = of.values() if within == "mode" else [list(rows)]
        level = {i: value for cell in cells for i, value in zip(cell, z([intra[i] for i in cell]), strict=True)}
        choice = dict(zip(rows, z([float(mode[i] == winner) for i in rows]), strict=True))
        for i in rows:
            advantage[i] = level[i]
            advantage[i, int(mask[i].nonzero()[0])] += alpha * choice[i]
    ratio = here.ratio()
    gap = here.clean("reference_logp") - here.logp()
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage) - kl * (gap.exp() - gap - 1)
    return -(torch.where(mask, objective, 0.0).sum(1) / mask.sum(1)).mean()


@pytest.mark.parametrize("within", ["mode", "prompt"])
@pytest.mark.parametrize(("alpha", "margin", "kl"), [(1.0, 0.2, 0.001), (0.0, 0.2, 0.0), (0.3, 0.6, 0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, alpha: float, margin: float, kl: float, within: str):
    here = case(seed, prompts=8)
    found = gradient(make("hgpo", alpha=alpha, margin=margin, kl=kl, within=within), here)
    assert_same(found, autograd(paper(here, alpha, margin, within, kl), here))


def group(rewards: list[float], modes: list[int], length: int = 3) -> Batch:
    mask = torch.ones(len(rewards), length, dtype=torch.bool)
    rows = {
        "reward": torch.tensor(rewards, dtype=torch.float64),
        "mode": torch.tensor(modes),
        "prompt": torch.zeros(len(rewards), dtype=torch.long),
    }
    return Batch(mask, mask.long(), rows=rows)


def test_four_responses_by_hand():
    """Thinking solves one of two, direct none: thinking wins by 0.5 > 0.2. z of (1, 0) is ±1/√2, of (1, 1, 0, 0) ±√3/2."""
    batch = group([1.0, 0.0, 0.0, 0.0], [0, 0, 1, 1])
    assert best_of_mode(batch).tolist() == [1.0, 0.0, 1.0, 1.0]
    found = HybridGroup()(batch)
    half, choice = 0.5**0.5, 0.75**0.5
    expected = torch.tensor([half, -half, 0.0, 0.0], dtype=torch.float64)[:, None].expand(4, 2)
    assert torch.allclose(found[:, 1:], expected, atol=1e-5)
    assert found[:, 0].tolist() == pytest.approx([half + choice, -half + choice, -choice, -choice], abs=1e-5)
    assert torch.equal(HybridGroup(alpha=0.0)(batch)[:, 0], found[:, 1])  # only the first action carries the choice
    inside = HybridGroup(within="prompt", alpha=0.0)(batch)[:, 0]  # z of (1, 0, 1, 1)
    assert inside.tolist() == pytest.approx([0.5, -1.5, 0.5, 0.5], abs=1e-5)


@pytest.mark.parametrize(("margin", "winner"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.51, 1)])
def test_the_margin_turns_the_choice_exactly_at_equality(margin: float, winner: int):
    batch = group([1.0, 0.5, 0.25, 0.25], [0, 0, 1, 1])
    assert preferred_mode(batch, margin).tolist() == [winner] * 4
    assert preferred_mode(group([1.0, 0.0], [1, 1]), margin).tolist() == [1, 1] and preferred_mode(group([0.0], [0]), margin).tolist() == [
        0
    ]


class Length:
    """One point for completions of an even number of characters."""

    def score(self, completions: list[str], items: list[Item]) -> list[float]:
        return [float(len(text) % 2 == 0) for text in completions]


def text_state() -> State:
    tokenizer = tiny_tokenizer()
    policy = CausalLM(tiny_model(vocabulary=len(tokenizer)), tokenizer)
    task = TextTask("words", [Item(1, "ab"), Item(2, "abcd"), Item(3, "b")], None, Length())
    return State(task, {"policy": policy})


def test_a_forced_opening_is_the_first_action():
    state = text_state()
    policy = state.models["policy"]
    batch = resolve(BothModes(OnPolicy(group=4, prompts=3, max_actions=5), ("a", "b")), {})(state)
    tokens = [policy.encode_completion(text)[0] for text in ("a", "b")]
    assert batch.shape[0] == 12 and batch.mask[:, 0].all() and batch["mode"].tolist() == [0] * 6 + [1] * 6
    assert batch.actions[:, 0].tolist() == [tokens[mode] for mode in batch["mode"].tolist()]
    context = batch.contexts["policy"]
    for row in range(12):
        assert context["tokens"][row][context["mask"][row]].tolist() == policy.encode(batch.notes["start"][row].prompt)
    assert not batch["terminated"][:, 0].any() and not batch["behaviour_logp"][:, 0].any()
    scored = policy.score(batch, [LogProb()])[LogProb()]
    assert torch.allclose(scored[:, 1:][batch.mask[:, 1:]], batch["behaviour_logp"][:, 1:][batch.mask[:, 1:]], atol=1e-4)
    assert (scored[:, 0] < -0.1).all()  # what the policy itself thinks of the opening
    assert state.spent["tokens"] == int(batch.mask[:, 1:].sum())


def test_the_hybrid_accuracy_of_the_policys_own_choice():
    state = State(ToyTask(), {})
    one, two = group([1.0, 0.0], [0, 1]), group([0.0, 1.0], [0, 1]).with_rows(prompt=torch.ones(2, dtype=torch.long))
    logp = torch.tensor([[-1.0, 9, 9], [-2.0, 9, 9], [-1.0, 9, 9], [-2.0, 9, 9]])  # thinking is likelier for both
    HybridAccuracy()(state, Batch.cat([one, two]).with_columns(old_logp=logp))
    assert state.close_round() == {"modes/accuracy": 0.5, "modes/direct": 0.0}


def test_bad_options():
    for options, says in (({"group": 5}, "two modes"), ({"alpha": -1.0}, "choice of a mode")):
        with pytest.raises(QuatrainError, match=says):
            make("hgpo", **options)
    with pytest.raises(QuatrainError, match="one token"):
        resolve(BothModes(OnPolicy(group=2, prompts=1), ("ab", "b")), {})(text_state())
    with pytest.raises(QuatrainError, match="whole distribution"):
        opening_as_action(case(0).batch.with_columns(support=torch.zeros(16, 5, 2)), 1, 0)
