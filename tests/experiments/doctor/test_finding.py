from __future__ import annotations

import pytest

from quatrain.experiments.doctor.finding import Examination, error, judged, ok, warning

GOOD, ODD, BAD = ok("a", "seen"), warning("b", "seen", "why", "fix"), error("c", "seen", "why", "fix")


@pytest.mark.parametrize(
    ("findings", "code", "strict"),
    [((GOOD,), 0, 0), ((GOOD, ODD), 0, 1), ((BAD, GOOD), 1, 1), ((), 0, 0)],
    ids=["ok", "odd", "bad", "none"],
)
def test_the_exit_code_is_for_continuous_integration(findings: tuple, code: int, strict: int):
    found = Examination({}, findings, {})
    assert (found.exit_code(), found.exit_code(strict=True)) == (code, strict)


def test_the_summary_names_errors_first_and_each_check_once():
    found = Examination({}, (ODD, BAD, BAD, GOOD), {"x": 1.4, "y": 2.0})
    assert found.summary().startswith("4 checks in 3 s: 2 errors (c) and 1 warning (b). Mend the errors")
    assert [finding.check for finding in found.wrong] == ["c", "c", "b"]
    assert Examination({}, (GOOD,), {}).summary().endswith("nothing wrong was found.")


def test_json_has_every_finding_with_what_to_do():
    told = Examination({"task": "t"}, (GOOD, BAD), {"x": 0.12345}).json()
    assert (told["errors"], told["warnings"], told["seconds"]) == (1, 0, {"x": 0.123})
    assert told["findings"][1] == {"check": "c", "severity": "error", "seen": "seen", "why": "why", "fix": "fix"}


def test_judged_is_an_error_only_when_it_is_not_good():
    assert judged(True, "a", "seen", "why", "fix") == GOOD
    assert judged(False, "c", "seen", "why", "fix") == BAD
