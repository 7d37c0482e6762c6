"""The letters laboratory: oracles, verifiers, splits, specs."""

from __future__ import annotations

import time
from fractions import Fraction
from random import Random

import pytest

from quatrain.errors import QuatrainError
from quatrain.protocols import Item, Sampling
from quatrain.tasks.letters import KINDS, MIXED, Problems, Verifier, check, letters, parse, split_of
from quatrain.tasks.letters.countdown import evaluate


def by_hand(kind: str, **problem) -> Item:
    value = problem["problem"]
    return Item(id=0, prompt=KINDS[kind].prompt(value), answer=KINDS[kind].steps(value)[-1], data={"kind": kind, **problem})


@pytest.mark.parametrize(
    ("kind", "problem", "prompt", "solution", "mistake"),
    [
        ("add", (47, 38), "47+38=", "85", "75"),
        ("add", (9, 1), "9+1=", "10", "0"),
        ("scratch", (47, 38), "47+38:", "15,08=85", "15,07=75"),
        ("scratch", (99, 1), "99+1:", "10,10,01=100", "10,09=90"),
        ("chain", ("7+5-3*2",), "7+5-3*2......>", "2>9>8", "2>9>1"),
        ("chain", ("1-5*3",), "1-5*3........>", "6>8", "6>9"),
        ("countdown", ((3, 7, 2), 11, "7*2-3"), "3,7,2@11=", "7*2-3", None),
        ("sort", ("52918",), "sort 52918=", "12589", "98521"),
        ("reverse", ("abc",), "rev abc=", "cba", "abc"),
        ("count", ("a", "banana"), "count a banana=", "3", "2"),
        ("shift", ("bja",), "next bja...=", "cab", "bja"),
        ("recall", ((("a", "34"), ("b", "12")), (1, 0)), "a34b12?b12a", "34", "12"),
        ("needle", ((("a", "34"), ("b", "12")), (1,), "cab cab ", (4, 8)), "cab #a34cab #b12?b", "12", "34"),
    ],
)
def test_each_kind_by_hand(kind, problem, prompt, solution, mistake):
    shape = KINDS[kind]
    assert shape.prompt(problem) == prompt and shape.mark.join(shape.steps(problem)) == solution
    assert shape.slip(problem, Random(0), 0.0) == solution
    wrong = shape.slip(problem, Random(0), 1.0)
    assert mistake in (None, wrong)
    item = by_hand(kind, problem=problem)
    assert check(solution, item) == 1.0 and check(wrong, item) == 0.0 and check("", item) == 0.0 and check(solution + "1", item) == 0.0


def test_worked_chains_are_shown_in_one_hand_and_answered_in_another():
    item = by_hand("worked", problem=("7+5-3*2",))
    shape = KINDS["worked"]
    assert item.prompt == "7+5-3*2......>" and shape.mark.join(shape.steps(("7+5-3*2",))) == "7+5=2-3=9*2=8>8"
    assert shape.slip(("7+5-3*2",), Random(0), 0.0) == "2>9>8" and shape.slip(("7+5-3*2",), Random(0), 1.0) == "2>9>1"
    right, wrong = ("2>9>8", "7+5=2-3=9*2=8>8", "8"), ("2>9>1", "7+5=2-3=9*2=8", "")
    assert Verifier().score([*right, *wrong], [item] * 6) == [1.0] * 3 + [0.0] * 3


def test_long_chains_are_answered_at_length():
    item, shape = by_hand("long", problem=("7+5-3*2",)), KINDS["long"]
    assert shape.mark.join(shape.steps(("7+5-3*2",))) == "7+5=2;2-3=9;9*2=8;8" == shape.slip(("7+5-3*2",), Random(0), 0.0)
    assert shape.slip(("7+5-3*2",), Random(0), 1.0) == "7+5=2;2-3=9;9*2=1;1"
    assert Verifier().score(["7+5=2;2-3=9;9*2=8;8", "8", "7+5=2;2-3=9;9*2=1;1", "7+5=2;2-3=9;9*2=8"], [item] * 4) == [1.0, 1.0, 0.0, 0.0]


def test_modes_are_two_ways_to_answer_judged_by_their_end():
    item, shape = by_hand("modes", problem=("7+5-3*2",)), KINDS["modes"]
    assert item.prompt == "7+5-3*2......=" and ">".join(shape.steps(("7+5-3*2",))) == "#2>9>8>8"
    pupil = {(rate, shape.slip(("7+5-3*2",), Random(seed), rate)) for seed in range(20) for rate in (0.0, 1.0)}
    assert pupil == {(0.0, "#2>9>8>8"), (0.0, ">8"), (1.0, "#2>9>1>1"), (1.0, ">1")}
    right, wrong = ("#2>9>8>8", ">8", "8", "2>9>8>8", "#2>9>1>8"), ("#2>9>1>1", ">1", "#", "#2>9>8>", "#8", "")
    assert Verifier().score([*right, *wrong], [item] * 11) == [1.0] * 5 + [0.0] * 6
    coin = [shape.slip(("7+5",), Random(seed), 0.0) for seed in range(400)]
    assert coin.count("#2>2") / 400 == pytest.approx(0.5, abs=0.08) and set(coin) == {"#2>2", ">2"}


def test_modes_are_graded_from_a_sum_to_six_operations():
    for level, (count, signs) in enumerate([(1, "+"), (1, "-"), (1, "*"), (3, "+-*"), (6, "+-*")], start=1):
        for item in list(Problems("train", kinds=("modes",), levels=(level, level), size=40)):
            text = item.data["problem"][0]
            assert len(text) == 2 * count + 1 and set(text[1::2]) <= set(signs) and len(item.solution) == 2 * count + 2
            assert item.answer == KINDS["chain"].steps((text,))[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_solutions_are_right_and_rejected_ones_wrong_at_every_level(kind, split):
    for level in range(1, 6):
        for item in list(Problems(split, kinds=(kind,), levels=(level, level), size=40)):
            assert check(item.solution, item) == 1.0 and check(item.rejected, item) == 0.0
            assert item.solution == item.chosen and item.solution.endswith(item.answer) and item.steps[-1] == item.answer
            assert item.data["level"] == level and split_of(KINDS[kind].key(item.data["problem"])) == split
            assert len(item.prompt) <= (160 if kind in ("recall", "needle") else 18) and len(item.solution) <= 50


def test_oracles_agree_with_plain_arithmetic():
    for item in list(Problems("train", kinds=("add", "scratch", "sort", "count"), size=300)):
        problem = item.data["problem"]
        expected = {
            "add": lambda p: str(sum(p)),
            "scratch": lambda p: str(sum(p)),
            "sort": lambda p: "".join(sorted(p[0])),
            "count": lambda p: str(list(p[1]).count(p[0])),
        }[item.data["kind"]](problem)
        assert item.answer == expected
    for item in list(Problems("train", kinds=("chain",), size=100)):
        text = item.data["problem"][0]
        nested = "(" * (len(text) // 2) + text[0] + "".join(text[i : i + 2] + ")" for i in range(1, len(text), 2))
        assert int(item.answer) == evaluate(nested)[0] % 10 and len(item.steps) == len(text) // 2


def test_countdown_accepts_every_right_expression_and_no_other():
    item = by_hand("countdown", problem=((3, 7, 2), 11, "7*2-3"))
    for right in ("7*2-3", "2*7-3", "(2*7)-3", " 7*2-3 "):
        assert check(right, item) == 1.0
    for wrong in ("11", "7*2-3+0", "7+2+2", "7*2-3*", "7*2--3", "(7*2-3", "7*2-3)", "3*2+5", "7**2-38", "7*2-3=11", "(7,2)", "1" * 100):
        assert check(wrong, item) == 0.0
    exact = by_hand("countdown", problem=((1, 3, 3), 1, "1/3*3"))
    assert check("1/3*3", exact) == 1.0  # in floating point only by luck
    assert evaluate("8/3-(2+6)/3") == (Fraction(0), [8, 3, 2, 6, 3]) and evaluate("2/(1-1)") is None and evaluate("") is None
    assert evaluate("2-3-4")[0] == -5 and evaluate("8/4/2")[0] == 1 and evaluate("2+3*4")[0] == 14


def test_the_verifier_reads_the_final_answer_alone():
    item = by_hand("scratch", problem=(47, 38))
    assert check("anything=85", item) == 1.0 and check("85", item) == 1.0 and check("15,08=75", item) == 0.0 and check("85=", item) == 0.0
    chain = by_hand("chain", problem=("7+5-3",))
    assert Verifier().score(["2>9", "9", "9>2"], [chain] * 3) == [1.0, 1.0, 0.0] and Verifier()("0>9", chain) == 1.0


def test_train_and_heldout_share_no_content_whatever_the_seed():
    contents = {"train": set(), "heldout": set()}
    for split, seen in contents.items():
        for seed in range(3):
            seen |= {
                KINDS[item.data["kind"]].key(item.data["problem"]) for item in list(Problems(split, levels=(1, 2), size=1500, seed=seed))
            }
    assert not contents["train"] & contents["heldout"] and min(map(len, contents.values())) > 500


def test_items_are_pure_functions_of_their_arguments():
    first, again = Problems("train", seed=3), Problems("train", seed=3, size=10**9)
    assert [first[i] for i in (5, 0, 7)] == [again[i] for i in (5, 0, 7)]
    assert first[5] != Problems("train", seed=4)[5] and first[5] != Problems("heldout", seed=3)[5] and again[10**8].id == 10**8
    with pytest.raises(IndexError):
        first[len(first)]


def test_mixture_has_kinds_and_levels_in_their_shares():
    items = list(Problems("train", size=4000))
    for kind in MIXED:  # one that is named twice has twice the share
        assert sum(item.data["kind"] == kind for item in items) / 4000 == pytest.approx(MIXED.count(kind) / len(MIXED), abs=0.03)
    for level in range(1, 6):
        assert sum(item.data["level"] == level for item in items) / 4000 == pytest.approx(0.2, abs=0.03)


def test_items_are_made_fast():
    problems = Problems("heldout", size=10**6)
    seconds = []
    for first in range(0, 3000, 1000):
        begin = time.process_time()
        for index in range(first, first + 1000):
            problems[index]
        seconds.append(time.process_time() - begin)
    assert 1000 / min(seconds) > 10_000  # measured: 40,000 a second; the margin is for loaded machines


def test_specs():
    assert parse("letters") == {} and parse("letters:chain") == {"kinds": ("chain",)}
    assert parse("letters:chain+add?levels=2-4&train=64&seed=3") == {"kinds": ("chain", "add"), "levels": (2, 4), "train": 64, "seed": 3}
    task = letters("letters:chain?levels=3", train=64, heldout=16)
    assert task.size("train") == 64 and task.size("heldout") == 16 and task.name == "letters:chain?levels=3"
    assert {(item.data["kind"], item.data["level"]) for item in task.starts("train", 0, 64)} == {("chain", 3)}
    for spec, message in [
        ("letters:chian", "did you mean 'chain'"),
        ("letters:chain?level=2", "did you mean 'levels'"),
        ("letters?levels=0-9", "levels=2-4"),
        ("letters?levels=4-2", "levels=2-4"),
        ("letters?train=many", "is a number"),
        ("numbers", "not a letters task"),
        ("letters?train=0", "at least one problem"),
    ]:
        with pytest.raises(QuatrainError, match=message):
            letters(spec)


def test_a_perfect_and_a_careless_pupil():
    """A policy that writes the oracle's solution is rewarded 1 everywhere, one that slips 0: through the whole task."""
    import torch

    from quatrain.batch import Batch

    task = letters("letters", heldout=40)
    oracle = {item.prompt: item for item in task.starts("heldout", 0, 40)}

    class Pupil:
        def __init__(self, field):
            self.field = field

        def encode(self, prompt):
            return [ord(c) for c in prompt]

        def decode(self, tokens):
            return "".join(map(chr, tokens))

        def sample(self, prompts, group, sampling, seeds):
            texts = [getattr(oracle["".join(map(chr, prompt))], self.field) for prompt in prompts for _ in range(group)]
            actions = torch.zeros(len(texts), 40, dtype=torch.long)
            for row, text in enumerate(texts):
                actions[row, : len(text)] = torch.tensor([ord(c) for c in text])
            return Batch(actions > 0, actions)

    good = task.evaluate(Pupil("solution"), 40, 2, Sampling(), 0)
    bad = task.evaluate(Pupil("rejected"), 40, 2, Sampling(), 0)
    assert good["accuracy"] == good["pass@2"] == good["accuracy/level3"] == good["accuracy/chain"] == 1.0
    assert bad["accuracy"] == bad["pass@2"] == bad["reward"] == 0.0
