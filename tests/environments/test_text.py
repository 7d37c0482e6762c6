"""Episodes of several turns: what is an action, what is scored, who depends on whom, where they end, and who is called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch

from quatrain.batch import Batch, Origin
from quatrain.environments.text import PLANNER, WORKER, Limits, Start, Step
from quatrain.errors import QuatrainError
from quatrain.estimator import Objective, Term
from quatrain.models.causal_lm import CausalLM
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from quatrain.tasks.loading import load_task
from quatrain.tasks.turns import TurnTask
from tests.tiny_models import tiny_model, tiny_tokenizer

SAMPLING = Sampling(max_actions=100)
ECHO, OFFICE = Limits(turns=6, turn_tokens=5, context=60), Limits(turns=3, turn_tokens=3, context=40)


@cache
def policy(chat: bool = False, pad_is_eos: bool = False) -> CausalLM:
    tokens = tiny_tokenizer(pad_is_eos, chat=chat)
    return CausalLM(tiny_model(vocabulary=len(tokens), scale=3.0), tokens)


@dataclass(frozen=True)
class Echo:
    """Answers every turn with its length; ends after as many turns as the state says. A turn with an ``a`` gets ½."""

    limits: Limits = ECHO
    stop: tuple[str, ...] = ("e", "t")

    def start(self, split: str, index: int) -> Start:
        return Start(index, (index % 3 + 1, ()), f"go {index}:")

    def step(self, state: tuple, text: str) -> Step:
        left, said = state[0] - 1, (*state[1], text)
        return Step((left, said), f"({len(text)})", 0.5 * ("a" in text), left == 0)

    def expert(self, state: tuple) -> str:
        return "mate" if state[0] == 1 else "ab"


@dataclass(frozen=True)
class Office:
    """A planner whose first turn calls two workers in a row; a worker is told a letter and ends at once."""

    limits: Limits = OFFICE
    stop: tuple[str, ...] = ()
    room: int = 1

    def start(self, split: str, index: int) -> Start:
        return Start(index, ("planner", 0), "plan:")

    def step(self, state: tuple, text: str) -> Step:
        if state[0] == "worker":
            return Step(state, f"<{state[1]}>", reward=9.0, ended=True)
        if state[1] == 0:
            return Step(("planner", 1), call=Start(0, ("worker", 1), "w1:" * self.room))
        return Step(state, reward=2.0, ended=True)

    def resume(self, state: tuple, told: str) -> Step:
        if state[1] == 1:
            return Step(("planner", 2), call=Start(0, ("worker", told), "w2:" * self.room))
        return Step(state, f"told {told}")


def task(environment: object = None, **limits: int) -> TurnTask:
    environment = environment or Echo()
    return TurnTask("test", environment, limits=replace(environment.limits, **limits) if limits else None)


def rollout(of: TurnTask, count: int = 4, group: int = 2, sampling: Sampling = SAMPLING, seed: int = 5) -> Batch:
    return of.rollout(policy(), of.starts("train", 0, count), group, sampling, seed)


def test_observations_are_present_and_never_actions():
    batch = rollout(task(), count=6)
    assert not (batch.mask & ~batch.present).any() and (batch.present & ~batch.mask).any()
    for row in range(len(batch)):
        said, inside = "", 0
        for turn in range(int(batch["turn"][row].max()) + 1):
            here = batch.present[row] & (batch["turn"][row] == turn)
            act, seen = here & batch.mask[row], here & ~batch.mask[row]
            text = policy().decode(batch.actions[row][act])
            shown = policy().decode(batch.actions[row][seen])
            assert act.nonzero()[0] == inside and shown in ("", f"({len(text)})")
            inside += int(here.sum())
            said += text + shown
            reward = float(batch["rewards"][row][here].sum())
            assert reward == 0.5 * ("a" in text) and not batch["rewards"][row][here][: int(act.sum()) - 1].any()
        assert said == batch.notes["completion"][row]
    assert torch.equal(batch["reward"], batch["rewards"].sum(1))
    ends = (batch["terminated"] | batch["truncated"]) & batch.mask
    assert (ends.sum(1) == 1).all() and not (batch["terminated"] & batch["truncated"]).any()
    assert set(batch["role"].tolist()) == {PLANNER} and (batch["parent"] == -1).all() and torch.equal(batch["episode"], batch["seed"])


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("sampling", [SAMPLING, replace(SAMPLING, temperature=0.7, top_k=5), replace(SAMPLING, top_p=0.8)])
def test_what_is_scored_is_what_was_sampled(sampling: Sampling, pad_is_eos: bool):
    """The ratio is 1 on every action of every turn, whatever stands between them."""
    here = policy(pad_is_eos=pad_is_eos)
    batch = task().rollout(here, task().starts("train", 0, 6), 3, sampling, 1)
    assert int(batch["turn"].max()) == 2
    with torch.no_grad():
        found = here.score(batch, [LogProb()])[LogProb()]
    assert torch.allclose(found[batch.mask], batch["behaviour_logp"][batch.mask], atol=2e-5)
    assert not batch["behaviour_logp"][~batch.mask].any()


def test_an_observation_token_has_exactly_no_gradient():
    """What stands in its place in any column does not matter, bit for bit."""
    here, batch = policy(), rollout(task())
    objective = Objective({"policy": Term()})

    def gradient(of: Batch) -> torch.Tensor:
        estimate = objective(of, here.score(of, objective.statistics()))
        assert not estimate.terms["policy"].coefficient[~of.mask].any()
        return torch.cat([part.flatten() for part in torch.autograd.grad(estimate.loss, list(here.module.parameters()))])

    poisoned = {name: value.masked_fill(~batch.mask, float("nan")) for name, value in batch.columns.items() if value.is_floating_point()}
    clean = gradient(batch)
    assert clean.any() and torch.equal(clean, gradient(batch.with_columns(**poisoned)))
    every = replace(batch, mask=batch.present)
    assert not torch.allclose(clean, gradient(every))


def test_a_row_depends_on_its_seed_start_and_member_alone():
    here, whole = task(), rollout(task(), count=5, group=3)
    for start in here.starts("train", 0, 5)[::2]:
        alone = here.rollout(policy(), [start], 2, SAMPLING, 5)
        rows = [row for row in range(len(whole)) if int(whole["prompt"][row]) == start.id][:2]
        for mine, row in enumerate(rows):
            assert alone.notes["completion"][mine] == whole.notes["completion"][row]
            assert int(alone["seed"][mine]) == int(whole["seed"][row])
    assert rollout(task(), seed=6).notes["completion"] != rollout(task(), seed=5).notes["completion"]
    twice = here.rollout(policy(), [here.starts("train", 2, 1)[0]] * 2, 1, SAMPLING, 5)
    once = here.rollout(policy(), here.starts("train", 2, 1), 2, SAMPLING, 5)
    assert twice.notes["completion"] == once.notes["completion"]


def test_a_state_is_a_snapshot():
    """An episode goes on from a state and the tokens so far exactly as it went on before."""
    here = Echo()
    start = here.start("train", 2)
    middle = here.step(here.step(start.state, "ab").state, "cd").state
    assert here.step(start.state, "ab") == here.step(start.state, "ab") and middle[0] == 1
    prompt = tuple(policy().encode("go 2:") + policy().encode_completion("ab(2)cd(2)")[:-1])
    batch = task().rollout(policy(), [Start(9, middle, prompt)], 2, SAMPLING, 0)
    assert (batch["turn"][batch.mask] == 0).all() and batch["terminated"].any(1).all()
    assert batch.contexts["policy"]["tokens"][0].tolist() == list(prompt)


@pytest.mark.parametrize(
    ("limits", "sampling"),
    [({"turns": 2}, SAMPLING), ({"context": 16}, SAMPLING), ({}, replace(SAMPLING, max_actions=4)), ({"turn_tokens": 1}, SAMPLING)],
)
def test_limits_cut(limits: dict, sampling: Sampling):
    here = task(**limits)
    batch = rollout(here, count=9, sampling=sampling)
    size = batch.present.sum(1) + batch.contexts["policy"]["mask"].sum(1)
    assert size.max() <= here.limits.context and batch.lengths.max() <= sampling.max_actions
    assert int(batch["turn"].max()) < here.limits.turns
    per_turn = [int((batch.mask & (batch["turn"] == turn)).sum(1).max()) for turn in range(3)]
    assert max(per_turn) <= here.limits.turn_tokens
    cut = batch["truncated"].any(1)
    assert cut.any() == ("turn_tokens" not in limits) and torch.equal(cut, ~batch["terminated"].any(1))
    for row, (mine, theirs) in enumerate(zip(batch.notes["completion"], rollout(task(), count=9).notes["completion"], strict=True)):
        assert "turn_tokens" in limits or theirs.startswith(mine), row  # cutting changes nothing of what comes before


def test_demonstrations_are_the_experts_and_can_be_imitated():
    here = task()
    batch = here.demonstrations(policy(), here.starts("train", 0, 3))
    assert here.has == {"demonstrations"} and "reward" not in batch and len(batch) == 3
    texts = ["mate", "ab(2)mate", "ab(2)ab(2)mate"]
    assert list(batch.notes["completion"]) == texts
    eos = policy().tokenizer.eos_token_id
    acts = policy().decode(batch.actions[2][batch.mask[2]])
    assert acts == "ababmate" and (batch.actions[2] == eos).sum() == 2  # a turn without a stop text ends in eos
    assert (batch["origin"][batch.mask] == Origin.DEMONSTRATION).all() and batch["terminated"].any(1).all()
    assert len(task(turns=2).demonstrations(policy(), here.starts("train", 0, 3))) == 2  # one is cut
    with pytest.raises(QuatrainError, match="no demonstrations"):
        task(Office()).demonstrations(policy(), [])


def test_a_called_episode_is_a_row_with_a_context_of_its_own():
    batch = rollout(task(Office()), count=2, group=2)
    assert batch["role"].tolist() == [PLANNER, WORKER, WORKER] * 4
    assert batch["prompt"].tolist() == [0] * 6 + [1] * 6
    for first in range(0, 12, 3):
        mine = batch.take([first, first + 1, first + 2])
        root = int(mine["seed"][0])
        assert mine["episode"].tolist() == [root] * 3 and mine["parent"].tolist() == [-1, root, root]
        assert (
            len(mine["seed"].unique()) == 3 and mine["reward"].tolist() == [2.0] * 3 and torch.equal(mine["rewards"].sum(1), mine["reward"])
        )
        assert mine.notes["prompt"] == ("plan:", "w1:", "w2:")
        assert "told <<1>>" in mine.notes["completion"][0] and "<1>" not in mine.notes["completion"][1]
    with torch.no_grad():
        found = policy().score(batch, [LogProb()])[LogProb()]
    assert torch.allclose(found[batch.mask], batch["behaviour_logp"][batch.mask], atol=2e-5)


def test_a_caller_goes_on_where_what_it_called_had_no_room():
    batch = rollout(task(Office(room=20)), count=1, group=1)
    assert batch["role"].tolist() == [PLANNER] and "told " in batch.notes["completion"][0]
    batch = rollout(task(Office(room=12)), count=1, group=1)  # room for one turn, which is the worker's last
    assert batch["role"].tolist() == [PLANNER, WORKER, WORKER]


def test_turns_of_a_chat_are_messages():
    here = policy(chat=True)
    assert here.decode(here.encode_reply("5")) == "5"
    assert here.decode(here.encode_reply("5", chat=True)) == "\nu:5\na:"
    start = replace(Echo().start("train", 1), prompt=[{"role": "user", "content": "go"}])
    batch = task().rollout(here, [start], 2, SAMPLING, 0)
    assert all("\nu:(" in here.decode(row[seen]) for row, seen in zip(batch.actions, batch.present & ~batch.mask, strict=True))


def test_it_is_measured():
    found = task().evaluate(policy(), 6, 4, SAMPLING, 0)
    assert set(found) == {"success", "reward", "length", "turns", "context", "calls", "pass@1", "pass@2", "pass@4"}
    assert found == task().evaluate(policy(), 6, 4, SAMPLING, 0) and found["calls"] == 0 and found["turns"] == 2
    assert task(Office()).evaluate(policy(), 2, 0, SAMPLING, 0)["calls"] == 2


USERS = """
from quatrain.environments.text import Limits, Start, Step

class Guess:
    limits, stop = Limits(turns=3, turn_tokens=1), ()

    def __init__(self, low: int = 1, word: str = "no", broken: bool = False):
        self.low, self.word, self.broken = low, word, broken

    def start(self, split, index):
        return Start(index, self.low, "guess:")

    def step(self, state, text):
        if self.broken:
            return 1 / 0
        return Step(state, self.word, ended=text == str(state))

class Helper:
    pass
"""


def test_a_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    for spec in ("mine.py", "mine.py:Guess?low=2&word=cold"):
        made = load_task(spec, seed=3)
        batch = made.rollout(policy(), made.starts("train", 0, 2), 2, SAMPLING, 0)
        assert len(batch) == 4 and made.seed == 3
    assert any("cold" in text for text in batch.notes["completion"])
    for spec, message in {
        "other.py:Guess": "does not exist",
        "mine.py:Gues": "did you mean 'Guess'",
        "mine.py:Helper": "is no text environment",
        "mine.py:Guess?high=2": "has no option 'high'",
        "mine.py:Guess?low": "has no value",
        "grid?size=40": "this grid cannot be",
        "toolword": "did you mean 'toolworld'",
    }.items():
        with pytest.raises(QuatrainError, match=message):
            load_task(spec)
    with pytest.raises(QuatrainError, match="its own rewards"):
        load_task("mine.py", reward="exact")
    broken = load_task("mine.py:Guess?broken=true")
    with pytest.raises(QuatrainError, match=r"failed in Guess\.step: ZeroDivisionError"):
        broken.rollout(policy(), broken.starts("train", 0, 1), 1, SAMPLING, 0)
    (tmp_path / "two.py").write_text(USERS.replace("class Helper:\n    pass", "class Other(Guess):\n    pass"))
    with pytest.raises(QuatrainError, match="which environment"):
        load_task("two.py")


def test_mistakes_of_an_environment_are_told():
    class Wrong(Echo):
        def step(self, state: tuple, text: str) -> Step:
            return Step(state, reward=float("nan"))

    with pytest.raises(QuatrainError, match="whose reward is finite"):
        rollout(task(Wrong()))
    with pytest.raises(QuatrainError, match="leaves no room"):
        rollout(task(context=3))
    with pytest.raises(QuatrainError, match="no split"):
        task().starts("test", 0, 1)
    with pytest.raises(QuatrainError, match="played in text"):
        task().check(object())
