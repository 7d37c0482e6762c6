"""What the doctor says: one finding per thing looked at, in order of how bad it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """check: what was looked at. seen: what was found, with numbers. why: why it matters. fix: what to do. The last two only if not ok."""

    check: str
    severity: Literal["ok", "warning", "error"]
    seen: str
    why: str = ""
    fix: str = ""


def ok(check: str, seen: str) -> Finding:
    return Finding(check, OK, seen)


def warning(check: str, seen: str, why: str, fix: str) -> Finding:
    return Finding(check, WARNING, seen, why, fix)


def error(check: str, seen: str, why: str, fix: str) -> Finding:
    return Finding(check, ERROR, seen, why, fix)


def judged(good: bool, check: str, seen: str, why: str, fix: str) -> Finding:
    """Ok if it is good, else an error."""
    return ok(check, seen) if good else error(check, seen, why, fix)


@dataclass(frozen=True)
class Examination:
    """All findings about one set-up.

    about    model, task, recipe and sampling, as texts.
    seconds  group of checks → how long it took.
    """

    about: dict[str, str]
    findings: tuple[Finding, ...]
    seconds: dict[str, float]

    def of(self, severity: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def wrong(self) -> list[Finding]:
        """Errors, then warnings."""
        return [*self.of(ERROR), *self.of(WARNING)]

    def exit_code(self, strict: bool = False) -> int:
        """1 with an error (``strict``: or a warning), else 0: for continuous integration."""
        return int(bool(self.of(ERROR) or (strict and self.of(WARNING))))

    def summary(self) -> str:
        """One paragraph."""
        counts = f"{len(self.findings)} checks in {sum(self.seconds.values()):.0f} s: "
        errors, warnings = self.of(ERROR), self.of(WARNING)
        if not errors and not warnings:
            return counts + "nothing wrong was found."
        told = []
        if errors:
            told.append(f"{_count(errors, 'error')} ({_names(errors)})")
        if warnings:
            told.append(f"{_count(warnings, 'warning')} ({_names(warnings)})")
        begin = (
            "Mend the errors before training: they make what is learnt wrong." if errors else "A run can start; read the warnings first."
        )
        return f"{counts}{' and '.join(told)}. {begin}"

    def json(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "summary": self.summary(),
            "errors": len(self.of(ERROR)),
            "warnings": len(self.of(WARNING)),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "findings": [asdict(finding) for finding in self.findings],
        }


def _count(findings: Sequence[Finding], what: str) -> str:
    return f"{len(findings)} {what}{'s' * (len(findings) != 1)}"


def _names(findings: Sequence[Finding]) -> str:
    return ", ".join(dict.fromkeys(finding.check for finding in findings))
