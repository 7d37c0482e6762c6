"""Every planted bug is found, and nothing is found where nothing is wrong: both are counted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from quatrain.experiments.doctor.data import check_repetitions
from quatrain.experiments.doctor.finding import OK
from quatrain.experiments.doctor.patient import Patient
from quatrain.tasks.letters import letters
from quatrain.training.settings import Settings
from tests.experiments.doctor.ward.planted import PLANTED
from tests.experiments.doctor.ward.setups import HEALTHY, judged_in_workers, text


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str):
    random.seed(0)
    _, plant, check, make = PLANTED[bug]
    setup = make()
    plant(setup)
    found = setup.examine()
    named = [finding for finding in found.wrong if finding.check == check]
    assert named, (bug, [(finding.check, finding.seen) for finding in found.wrong])
    assert all(finding.why and finding.seen for finding in named)


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_on_a_healthy_set_up(name: str):
    found = HEALTHY[name]().examine()
    assert not found.wrong, [(finding.check, finding.seen) for finding in found.wrong]
    assert found.exit_code(strict=True) == 0 and len(found.of(OK)) > 15


def test_a_user_reward_in_a_process_of_its_own_is_healthy(tmp_path: Path):
    setup = judged_in_workers(tmp_path)
    found = setup.examine()
    assert not found.wrong, [(finding.check, finding.seen) for finding in found.wrong]


def test_how_many_bugs_of_every_kind_are_planted():
    assert (len(PLANTED), len({kind for kind, *_ in PLANTED.values()}), len(HEALTHY)) == (52, 8, 24)


def test_the_documentation_lists_what_is_planted_and_found():
    page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text()
    assert f"{len(PLANTED)} of {len(PLANTED)} are found" in page and f"{len(HEALTHY) + 1} healthy set-ups" in page
    for bug, (kind, _, check, _) in PLANTED.items():
        assert f"| {kind} | {bug} | {check} |" in page


@pytest.mark.parametrize("spec", ["letters", "letters:countdown", "letters:add?levels=1"])
def test_problems_that_repeat_by_nature_or_have_several_right_answers_are_no_finding(spec: str):
    """Random draws from a small set of problems; a countdown that several expressions solve."""
    setup = text()
    setup.task = letters(spec)
    patient = Patient(setup.task, setup.policy, setup.recipe, {**setup.recipe.knobs(), **setup.keys}, Settings())
    found = list(check_repetitions(patient))
    assert [finding.severity for finding in found] == [OK, OK], found
