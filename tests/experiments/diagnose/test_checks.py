"""Every planted bug is found, and nothing on healthy recipes."""

from __future__ import annotations

import pytest

from quatrain.errors import QuatrainError
from quatrain.experiments.diagnose.checks import findings
from quatrain.training.registry import entries, make
from tests.experiments.diagnose.planted import PLANTED

HEALTHY = [
    ("reinforce", {}),
    ("reinforce", {"baseline": False}),
    ("rloo", {"group": 2}),
    ("rloo", {}),
    ("grpo", {}),
    ("grpo", {"kl": 0.0, "group": 4}),
    ("dr-grpo", {}),
    ("gspo", {}),
    ("dapo", {}),
    ("dapo", {"mean": "batch"}),
    ("hpt", {}),
    ("hpt", {"version": "code", "entropy": 0.001}),
    ("opd", {"kind": "jsd"}),
    ("dpo", {}),
    ("sft", {}),
    ("ppo", {}),
]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str):
    build, kinds = PLANTED[name]
    found = findings(build())
    assert kinds & {finding.kind for finding in found}, [finding.kind for finding in found]
    assert all(finding.seen and finding.why and finding.fix for finding in found)


@pytest.mark.parametrize(("name", "options"), HEALTHY, ids=[f"{name}-{options}" for name, options in HEALTHY])
def test_a_healthy_recipe_has_none(name: str, options: dict):
    assert [str(finding) for finding in findings(make(name, **options))] == []


LONG = {"dagrpo", "ppo-ewma-async", "papo", "discovered-po", "riskpo", "mdpo", "copo"}  # edits or scores that are run on every draw
OTHERS = [entry.name for entry in entries() if entry.name not in {name for name, _ in HEALTHY}]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in OTHERS])
def test_every_other_recipe_has_none_or_is_refused_in_a_sentence(name: str):
    try:
        found = findings(make(name))
    except QuatrainError as error:
        assert error.what
        return
    assert [str(finding) for finding in found] == []


def test_the_shrinkage_by_the_own_sample_is_named_with_its_number():
    (finding,) = [one for one in findings(PLANTED["baseline contains its own sample"][0]()) if one.kind == "bias"]
    assert "(G−1)/G = 0.875" in finding.seen
