"""Equal answers are equal however they are written, and only those."""

from __future__ import annotations

import pytest

from quatrain.errors import QuatrainError
from quatrain.protocols import Item
from quatrain.rewards.extract import final_answer, marked_answer
from quatrain.rewards.maths import Math, equivalent


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"So we get \boxed{42}.", "42"),
        (r"\boxed{1} is wrong; \boxed{\frac{3}{4}}", "0.75"),
        ("6*7 is\n#### 1,042", "1042"),
        ("<think>17</think><answer>42</answer>", "42"),
        ("<answer>\\boxed{42}</answer>", "42"),
        ("The answer is 18 dollars. There were 3 of them.", "18"),
        ("The answer is $\\frac{1}{2}$.", "1/2"),
        ("**Answer: 7**", "7"),
        ("He has 5, then 2, so 3+4=7", "7"),
        ("the change is -3.5.", "-3.5"),
        ("we get $x = 5$ at last", "5"),
        ("x + 1", "1+x"),
        ("50%", "0.5"),
        ("50%", "50"),
        (r"\boxed{18\text{ dollars}}", "18"),
        (r"\boxed{(1, 2)}", "(1,2)"),
        (r"\boxed{3\sqrt{2}}", r"\sqrt{18}"),
        (r"\boxed{x=5}", "5"),
        ("Yes", "yes"),
        ("42", "the steps\n#### 42"),
    ],
)
def test_right(completion: str, answer: str) -> None:
    assert Math()(completion, Item(0, "", answer)) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("", "3"),
        ("no idea", "3"),
        (r"\boxed{", "3"),
        (r"\boxed{1/0}", "3"),
        (r"\boxed{(2, 1)}", "(1,2)"),
        ("3 1", "31"),
        ("-3", "3"),
        ("5 < 6", "5"),
        ("142", "42"),
        ("42 at first, then 41", "42"),
        ("{" * 2000, "3"),
        (r"\boxed{" + "{" * 2000 + "}" * 2001, "3"),
        ("\x00\ud800", "3"),
    ],
)
def test_wrong_and_never_an_exception(completion: str, answer: str) -> None:
    assert Math()(completion, Item(0, "", answer)) == 0.0


def test_equivalence_is_an_equivalence_on_numbers() -> None:
    same = ["1/2", "0.5", r"\frac{1}{2}", "2/4", ".50"]
    assert all(equivalent(left, right) for left in same for right in same)
    assert not any(equivalent(left, "0.51") or equivalent("0.51", left) for left in same)


def test_marks_go_before_numbers() -> None:
    assert marked_answer("the answer is 3") is None
    assert final_answer("#### 4\nand 5") == "4"
    assert final_answer(r"\boxed{\text{a}_{1}} #### 4") == r"\text{a}_{1}"
    assert final_answer("nothing at all") is None


def test_an_item_without_an_answer_is_a_mistake() -> None:
    with pytest.raises(QuatrainError, match="item 3 has none"):
        Math()("42", Item(3, "prompt"))
