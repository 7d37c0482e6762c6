"""What stands after reward=."""

from __future__ import annotations

from pathlib import Path

import pytest

from quatrain.errors import QuatrainError
from quatrain.protocols import Item
from quatrain.rewards.spec import load_reward

ITEM = Item(7, "prompt", "42", "6*7 #### 42")


def module_reward(completion: str, item: Item) -> float:
    return float(len(completion) + item.id)


def test_built_ins_and_their_options() -> None:
    assert load_reward("exact")(" 42\n", ITEM) == 1
    assert load_reward("contains?text=six seven")("it is Six  Seven.", ITEM) == 1
    assert load_reward("format?pattern=^[0-9]%2B$")("42", ITEM) == 1
    length = load_reward("length?max=10&cache=4")
    assert [length("x" * n, ITEM) for n in (0, 6, 7, 10, 50)] == [0, 0, -0.25, -1, -1]


def test_format_wants_each_tag_once_and_nothing_outside() -> None:
    good = "<think>a</think>\n<answer>b</answer>\n"
    reward = load_reward("format")
    assert reward(good, ITEM) == 1
    for bad in ("x" + good, good + "x", good.replace("a", "<think>"), good.replace("</think>", ""), "<answer>b</answer><think>a</think>"):
        assert reward(bad, ITEM) == 0


def test_a_sum_is_the_sum() -> None:
    reward = load_reward("math + 0.5*contains + -0.25*length?max=4&cache=2")
    assert reward.name == "math+0.5*contains+-0.25*length"
    assert reward("42", ITEM) == 1 + 0.5
    assert reward("so, 42", ITEM) == 1 + 0.5 + 0.25
    assert not reward.trusted and load_reward("2*exact+format").trusted
    assert reward.needs == ("answer",)


def test_own_functions_are_called_by_parameter_name(tmp_path: Path) -> None:
    file = tmp_path / "my+rewards.py"
    (tmp_path / "neighbour_of_rewards.py").write_text("BONUS = 0.25\n")
    file.write_text(
        "from neighbour_of_rewards import BONUS\n"
        "def _hidden(x): return 0\n"
        "def named(answer, completion, *, prompt): return len(answer) + len(completion) + len(prompt)\n"
        "def everything(**given): return sorted(given) == ['answer', 'completion', 'item', 'prompt', 'solution']\n"
        "def extra(completion, bonus=BONUS): return bonus\n"
        "def worked(solution): return solution.endswith('42')\n"
        "def reward(completion, item): return item.id\n"
    )
    values = {name: load_reward(f"{file}:{name}")("abc", ITEM) for name in ("named", "everything", "extra", "worked")}
    assert values == {"named": 2 + 3 + 6, "everything": True, "extra": 0.25, "worked": True}
    assert load_reward(str(file))("abc", ITEM) == 7
    assert load_reward(f"0.5*{tmp_path}/neighbour_of_rewards.py+exact", prepare=False).name.startswith("0.5*")


def test_dotted_path_and_function_object() -> None:
    assert load_reward("posixpath:basename", prepare=False).name == "posixpath:basename"
    assert load_reward(module_reward)("abc", ITEM) == 10


def test_nothing_is_imported_before_it_is_prepared(tmp_path: Path) -> None:
    file = tmp_path / "loud.py"
    file.write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\ndef reward(completion): return 1\n")
    reward = load_reward(str(file), prepare=False)
    assert not (tmp_path / "mark").exists()
    reward.prepare()
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("mth", ["no reward 'mth'", "did you mean 'math'?"]),
        ("", ["missing"]),
        ("math+", ["missing"]),
        ("length", ["needs max and cache"]),
        ("length?max=ten&cache=2", ["not a number", "ten"]),
        ("length?max=2&cache=4", ["0 < cache ≤ max"]),
        ("length?maxi=4&cache=4", ["no option 'maxi'", "did you mean 'max'?"]),
        ("format?pattern=(", ["not a regular expression"]),
        ("absent_pkg_xyz:score", ["absent_pkg_xyz", "cannot be imported"]),
        ("DIR/reward.py:one", ["does not exist", "did you mean 'rewards.py'?"]),
        ("DIR/rewards.py:oen", ["no function oen", "one, two", "did you mean 'one'?"]),
        ("DIR/rewards.py", ["no function reward", "one, two"]),
        ("DIR/rewards.py:two", ["wrong parameters", "(completions, item)", "did you mean 'completion'?"]),
        ("DIR/rewards.py:CONSTANT", ["not a function"]),
        ("DIR/broken.py:f", ["cannot be imported", "SyntaxError", "line 1"]),
    ],
)
def test_mistakes_are_one_message(tmp_path: Path, spec: str, parts: list[str]) -> None:
    (tmp_path / "rewards.py").write_text("CONSTANT = 1\ndef one(completion): return 1\ndef two(completions, item): return 1\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(QuatrainError) as error:
        load_reward(spec.replace("DIR", str(tmp_path)))
    for part in parts:
        assert part in str(error.value)
