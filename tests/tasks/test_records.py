"""The shapes that data comes in, and what is said about data that does not fit."""

from __future__ import annotations

import pytest

from quatrain.errors import QuatrainError
from quatrain.tasks.records import find_columns, split_heldout, to_items

USER, REPLY = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}


def items(*records: dict, **given: str):
    return to_items(records, find_columns(records[0], given, "data"), "data")


def test_plain_columns_by_well_known_and_given_names() -> None:
    item = items({"id": 5, "problem": "6*7?", "answer": 42, "solution": "multiply"})[0]
    assert (item.id, item.prompt, item.answer, item.solution) == (0, "6*7?", "42", "multiply")
    item = items({"text": "6*7?", "meta": {"gold": 42.0}, "answer": "decoy"}, prompt="text", answer="meta.gold")[0]
    assert (item.prompt, item.answer) == ("6*7?", "42")


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (3.0, "3"), (0.25, "0.25"), (-7, "-7"), ("3.0", "3.0"), (True, "True"), (10**30, str(10**30))]
)
def test_numbers_become_text(value: object, text: str) -> None:
    assert items({"prompt": "p", "answer": value})[0].answer == text


def test_gsm8k() -> None:
    item = items(
        {"question": "Clips?", "answer": "April: 48/2 = <<48/2=24>>24 clips.\nIn all 1000+24 = <<1000+24=1024>>1024.\n#### 1,024"}
    )[0]
    assert item.answer == "1024"
    assert item.solution == "April: 48/2 = 24 clips.\nIn all 1000+24 = 1024.\n#### 1,024"
    assert item.steps == ("April: 48/2 = 24 clips.", "In all 1000+24 = 1024.")


def test_a_mark_in_the_solution_is_the_answer_where_there_is_no_column() -> None:
    assert items({"problem": "p", "solution": r"so $x=\boxed{\frac{1}{2}}$"})[0].answer == r"\frac{1}{2}"
    assert items({"problem": "p", "solution": "no mark, 42"})[0].answer is None


def test_chat() -> None:
    system = {"role": "system", "content": "be kind"}
    item = items({"messages": [system, USER, REPLY, USER, {"role": "assistant", "content": "bye", "tool_calls": None}]})[0]
    assert item.prompt == (system, USER, REPLY, USER) and item.solution == "bye"
    assert items({"messages": [USER]})[0].solution is None
    item = items({"messages": [USER, REPLY], "answer": 4})[0]
    assert (item.prompt, item.solution, item.answer) == ((USER,), "hi", "4")
    item = items({"prompt": [system, USER], "reward_model": {"ground_truth": "42"}})[0]
    assert (item.prompt, item.answer) == ((system, USER), "42")


def test_preferences() -> None:
    other = {"role": "assistant", "content": "go away"}
    plain = items({"prompt": "hello", "chosen": "hi", "rejected": "go away"})[0]
    mixed = items({"prompt": "hello", "chosen": [USER, REPLY], "rejected": [USER, other]})[0]
    whole = items({"chosen": [USER, REPLY], "rejected": [USER, other]})[0]
    for item, prompt in ((plain, "hello"), (mixed, "hello"), (whole, (USER,))):
        assert (item.prompt, item.chosen, item.rejected) == (prompt, "hi", "go away")
    with pytest.raises(QuatrainError, match="row 1 of data begin differently"):
        items({"chosen": [USER, REPLY], "rejected": [{"role": "user", "content": "hey"}, other]})


@pytest.mark.parametrize(
    ("records", "given", "parts"),
    [
        ([{"instruct": "a", "answer": 1}], {}, ["no column to prompt with", "instruct, answer", "prompt=COLUMN"]),
        ([{"prompt": "a", "answer": 1}], {"answer": "anser"}, ["no column 'anser'", "prompt, answer", "did you mean 'answer'?"]),
        ([{"prompt": "a", "answer": 1}], {"anser": "answer"}, ["role 'anser'", "did you mean 'answer'?"]),
        ([{"prompt": "a", "answer": 1}, {"prompt": "b"}], {}, ["row 2 of data has no column 'answer'"]),
        (
            [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": [2]}],
            {},
            ["'answer' of row 2 of data is of the wrong type", "[2] (list)"],
        ),
        ([{"prompt": "a", "answer": {"x": 1}}], {}, ["row 1", "(dict)", "answer=COLUMN"]),
        ([{"prompt": "a", "answer": None}], {}, ["row 1", "None (NoneType)", "delete the rows"]),
        ([{"prompt": "a", "answer": float("nan")}], {}, ["row 1", "nan (float)"]),
        ([{"prompt": " ", "answer": 1}], {}, ["the prompt of row 1 of data is empty"]),
        ([{"prompt": 3.5j, "answer": 1}], {}, ["'prompt' of row 1", "complex"]),
        ([{"messages": "hi"}], {}, ["no list of messages", "(str)"]),
        ([{"messages": []}], {}, ["no list of messages"]),
        ([{"messages": [{"role": "user", "content": None}]}], {}, ["not a role and a text"]),
        ([{"messages": [{"role": "usr", "content": "a"}]}], {}, ["unknown role", "did you mean 'user'?"]),
        ([{"prompt": "a", "chosen": [USER], "rejected": [USER]}], {}, ["has no reply"]),
    ],
)
def test_mistakes_are_one_message(records: list[dict], given: dict, parts: list[str]) -> None:
    with pytest.raises(QuatrainError) as error:
        items(*records, **given)
    for part in parts:
        assert part in str(error.value)


def test_the_heldout_share_is_stable_and_keeps_equal_prompts_together() -> None:
    whole = items(*({"prompt": f"problem {index % 500}", "answer": index} for index in range(1000)))
    train, held = split_heldout(whole, 0.1, "data")
    assert len(train) + len(held) == 1000 and 60 < len(held) < 140
    assert not {item.prompt for item in train} & {item.prompt for item in held}
    assert {item.id for item in train} | {item.id for item in held} == set(range(1000))
    fewer, _ = split_heldout(whole[:200], 0.1, "data")
    assert {item.prompt for item in fewer} <= {item.prompt for item in train}  # more data never moves a problem across


def test_at_least_one_is_held_out_and_one_is_left() -> None:
    two = items({"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 1})
    for share in (1e-9, 0.1):
        train, held = split_heldout(two, share, "data")
        assert (len(train), len(held)) == (1, 1)
    assert split_heldout(two, 0, "data") == (two, [])
    with pytest.raises(QuatrainError, match="too few different prompts"):
        split_heldout(two[:1], 0.1, "data")
    with pytest.raises(QuatrainError, match="below 1"):
        split_heldout(two, 1.0, "data")
