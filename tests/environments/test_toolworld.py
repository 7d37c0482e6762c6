"""The toolworld laboratory: typed calls, noisy answers, experts alone and in a team, and what the embedded model can read."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest
import torch

from quatrain.environments.toolworld import Desk, Toolworld
from quatrain.environments.toolworld.calls import Call, parse_call
from quatrain.environments.toolworld.questions import Question, next_call, wrong_call
from quatrain.errors import QuatrainError
from quatrain.models.causal_lm import CausalLM
from quatrain.tasks.embedded import tokenizer
from quatrain.tasks.loading import load_task
from tests.tiny_models import tiny_model

TABLE = "".join({"b": "g", "g": "h"}.get(key, "a") for key in "abcdefghijkl")
QUESTION = Question("b2", "bgh", "h", TABLE, "bg", 7)


@cache
def policy() -> CausalLM:
    tokens = tokenizer()
    return CausalLM(tiny_model(vocabulary=len(tokens)), tokens)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("look(b)\n", Call("look", "b")),
        (" Say( T )\n", Call("say", "t")),
        ("calc(12*3)", Call("calc", "12*3")),
        ("look b\n", "write tool(argument)"),
        ("look(b))\n", "write tool(argument)"),
        ("", "write tool(argument)"),
        ("find(b)\n", "no tool find"),
        ("ask(b)\n", "no tool ask"),
        ("look(bg)\n", "look takes a letter from a to l"),
        ("look(z)\n", "look takes a letter from a to l"),
        ("calc(1+)\n", "calc takes a+b, a-b or a*b"),
        ("calc(99999+1)\n", "calc takes a+b, a-b or a*b"),
        ("say(?)\n", "say takes a letter or a number"),
    ],
)
def test_typed_calls(text: str, told: Call | str):
    assert parse_call(text, ("look", "calc", "say")) == told
    if isinstance(told, str):
        step = Toolworld().step(Desk("a", QUESTION), text)
        assert step.observation == f"error: {told}\n" and not step.ended and step.state == Desk("a", QUESTION)


def test_an_episode_alone_by_hand():
    world = Toolworld(noise=3)
    first = world.step(Desk("a", QUESTION), "look(b)\n")
    entries = first.observation.split()
    assert entries.count("b=g") == 1 and len(entries) == 4 and sum("-" in entry for entry in entries) == 3
    assert not {entry[0] for entry in entries} & set("g") and first.observation == world.step(first.state, "look(b)\n").observation
    assert entries[-1] == "b=g"
    places = [Toolworld(place="anywhere").start("train", index).state for index in range(9)]
    texts = [Toolworld(place="anywhere").step(desk, f"look({desk.question.text[0]})\n").observation.split() for desk in places]
    assert len({["=" in entry for entry in text].index(True) for text in texts}) > 2
    assert first.state.found == (("b", "g"),) and world.expert(first.state) == "look(g)\n"
    second = world.step(first.state, "look(g)\n")
    right, wrong = world.step(second.state, "say(h)\n"), world.step(second.state, "say(g)\n")
    assert (right.reward, right.ended, wrong.reward, wrong.ended) == (1.0, True, 0.0, True)


def test_a_planner_hears_what_its_worker_says():
    world = Toolworld(agents="team", noise=2)
    asked = world.step(Desk("p", QUESTION), "ask(b)\n")
    assert asked.call.prompt == "w:b\n" and asked.call.answer == "g" and not asked.ended
    worker = world.step(asked.call.state, "look(b)\n")
    assert world.expert(asked.call.state) == "look(b)\n" and world.expert(worker.state) == "say(g)\n"
    said = world.step(worker.state, "say(g)\n")
    assert said.ended and said.reward == 0.0 and said.observation == "g\n"
    heard = world.resume(asked.state, said.observation)
    assert heard.observation == "g\n" and world.expert(heard.state) == "ask(g)\n"
    nothing = world.resume(asked.state, "")
    assert nothing.observation == "none\n" and nothing.state.found == ()


def test_sums_need_the_calculator():
    world = Toolworld(kind="sum", noise=0)
    start = world.start("train", 0)
    state, said = start.state, []
    while True:
        said.append(world.expert(state))
        step = world.step(state, said[-1])
        state = step.state
        if step.ended:
            break
    assert [text.partition("(")[0] for text in said] == ["look", "look", "calc", "say"] and step.reward == 1.0
    assert world.step(start.state, "calc(7-9)\n").observation == "-2\n"


@pytest.mark.parametrize("options", ["", "?agents=team", "?kind=sum", "?kind=sum&agents=team&noise=0", "?hops=3&noise=2&agents=team"])
def test_the_expert_is_right_and_everything_can_be_read(options: str):
    task = load_task(f"toolworld{options}{'&' if options else '?'}context=400")
    shown = task.demonstrations(policy(), task.starts("train", 0, 12))
    team = "team" in options
    assert (shown["role"] == 0).sum() == 12 and (len(shown) > 12) == team
    unknown = policy().tokenizer.unk_token_id
    assert not (shown.actions == unknown).any() and not (shown.contexts["policy"]["tokens"] == unknown).any()
    answers = zip(shown.notes["completion"], shown.notes["answer"], strict=True)
    assert all(text.endswith(f"say({answer})\n") for text, answer in answers)
    assert len({start.state.question.content for start in task.starts("train", 0, 50)}) > 30


def test_one_agent_has_no_room_for_what_a_team_reads():
    """44 noisy tokens twice do not fit into a context of 96; a worker's one answer does."""
    for options, kept in (("noise=10", 0), ("noise=10&agents=team", 8), ("noise=4", 8)):
        task = load_task(f"toolworld?{options}")
        assert int((task.demonstrations(policy(), task.starts("train", 0, 8))["role"] == 0).sum()) == kept


def test_no_question_is_in_both_splits():
    world = Toolworld(hops=2)
    train, held = ({world.start(split, index).state.question.content for index in range(300)} for split in ("train", "heldout"))
    assert not train & held and len(held) > 50 and Toolworld(seed=1).start("train", 0) != Toolworld().start("train", 0)


def test_slips_are_well_formed():
    for found in ({}, {"b": "g"}, {"b": "g", "g": "h"}):
        right = next_call("a", QUESTION, found)
        wrong = {wrong_call("a", QUESTION, found, Random(seed)) for seed in range(40)}
        assert len(wrong) > 8 and all(isinstance(parse_call(text, ("look", "say")), Call) for text in wrong)
        assert {text.partition("(")[0] for text in wrong} == {right.partition("(")[0]}
    assert Toolworld().slip(Desk("w", QUESTION), Random(0)).startswith("look(")
    sums = Question("b+c", "", "", "5" * 12, "bc", 0)
    assert isinstance(parse_call(wrong_call("a", sums, {"b": "5", "c": "5"}, Random(0)), ("calc",)), Call)


def test_what_a_team_is_rewarded_for_is_the_planners_answer():
    task = load_task("toolworld?agents=team&noise=1")
    batch = task.demonstrations(policy(), task.starts("train", 0, 3))
    assert torch.equal(batch["parent"] == -1, batch["role"] == 0)
    assert task.has == {"demonstrations"} and "reward" not in batch


def test_impossible_worlds_are_refused():
    for wrong, message in (
        ({"agents": "crowd"}, "no such agents"),
        ({"kind": "hop"}, "did you mean 'hops'"),
        ({"place": "first"}, "no such place"),
        ({"noise": "many"}, "noise is a number"),
        ({"noise": "9-3"}, "cannot be"),
        ({"hops": 0}, "cannot be"),
    ):
        with pytest.raises(QuatrainError, match=message):
            Toolworld(**wrong)
