"""Operations on a library of rules: idempotent, deduplicated, bounded, kept."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.search.library import Library, Operation, Rule, read_library


def add(text: str, weight: float = 1.0, place: tuple[int, int] | None = None) -> Operation:
    return Operation("add", rule=Rule(text, weight, place))


THREE = Library().apply([add("a"), add("b"), add("c")])


@pytest.mark.parametrize(
    "operation",
    [
        add("d"),
        add("a"),
        Operation("delete", "R2"),
        Operation("delete", "R9"),
        Operation("modify", "R1", Rule("z")),
        Operation("keep", "R1"),
    ],
)
def test_every_operation_is_idempotent(operation: Operation):
    once = THREE.apply([operation])
    assert once.apply([operation]) == once == THREE.apply([operation] * 3)


def test_what_each_operation_does():
    assert [(rule.name, rule.text) for rule in THREE.rules] == [("R1", "a"), ("R2", "b"), ("R3", "c")]
    assert [rule.text for rule in THREE.apply([Operation("delete", "R2"), add("d")]).rules] == ["a", "c", "d"]
    assert THREE.apply([Operation("delete", "R3"), add("d")]).rules[-1].name == "R4", "a name is never given twice"
    assert THREE.apply([Operation("keep", "R1")]) == THREE
    assert THREE.apply([Operation("delete", "R9"), Operation("modify", "R9", Rule("x"))]) == THREE


def test_two_rules_that_say_the_same_are_one():
    assert THREE.apply([add("  A. ")]) == THREE
    merged = THREE.apply([Operation("modify", "R1", Rule("B"))])
    assert [(rule.name, rule.text) for rule in merged.rules] == [("R1", "B"), ("R3", "c")]
    placed = Library().apply([add("one way to say it", 1.0, (2, 3)), add("another", 2.0, (2, 3))])
    assert len(placed) == 1 and placed.find((2, 3)).weight == 1.0


def test_a_full_library_forgets_the_weakest_then_the_oldest():
    full = Library(size=2).apply([add("strong", -3.0), add("weak", 1.0), add("new", 1.0)])
    assert [rule.text for rule in full.rules] == ["strong", "new"]


def test_the_prior_sums_weights_and_the_text_lists_rules():
    library = Library().apply([add("x", 2.0, (0, 1)), add("y", -1.5, (2, 0)), add("text only")])
    expected = torch.tensor([[0.0, 2.0], [0.0, 0.0], [-1.5, 0.0]])
    assert torch.equal(library.prior(torch.ones(3, 2)), expected)
    assert library.text("Rules:") == "Rules:\n- x\n- y\n- text only\n\n" and Library().text() == ""
    with pytest.raises(QuatrainError, match="no row of this table"):
        library.prior(torch.ones(2, 2))


def test_it_is_kept_as_json(tmp_path):
    library = THREE.apply([add("ünï", 0.5, (1, 2))])
    assert Library.loads(library.dumps()) == library
    (tmp_path / "library.json").write_text(library.dumps())
    assert read_library(tmp_path / "library.json") == library
    for text in ("", "[]", '{"rules": [{"colour": 1}], "size": 3, "born": 0}'):
        with pytest.raises(QuatrainError, match="no library"):
            Library.loads(text)
    with pytest.raises(QuatrainError, match="does not exist"):
        read_library(tmp_path / "nothing.json")


@pytest.mark.parametrize("wrong", [("swap", "R1"), ("modify", "R1"), ("delete", ""), ("add", "")])
def test_an_operation_is_complete_or_refused(wrong: tuple[str, str]):
    with pytest.raises(QuatrainError, match="no operation"):
        Operation(*wrong)
    with pytest.raises(QuatrainError, match="room"):
        Library(size=0)
