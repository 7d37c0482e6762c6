"""Which metrics share a figure, and in which order figures stand on the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """One figure: its title and its metrics; a name ending in * stands for every metric that begins so.

    limits    ends of the y axis, None where the data decides.
    expected  its absence in a run is worth a sentence.
    """

    title: str
    metrics: tuple[str, ...]
    limits: tuple[float | None, float | None] = (None, None)
    expected: bool = False

    def names(self, known: Iterable[str]) -> list[str]:
        """Those of the known metrics that belong here, in the panel's order."""
        known = list(known)
        return [
            name for wanted in self.metrics for name in known if (name.startswith(wanted[:-1]) if wanted.endswith("*") else name == wanted)
        ]


MAIN = (
    Panel("Reward", ("reward",), expected=True),
    Panel("Return", ("return",)),
    Panel("Held-out accuracy", ("accuracy", "pass@*"), limits=(0.0, None), expected=True),
    Panel("Entropy", ("entropy",), expected=True),
    Panel("KL", ("kl",), expected=True),
    Panel("Length", ("length",), expected=True),
)
DIAGNOSTICS = (
    Panel("Ratio", ("ratio",)),
    Panel("Largest ratio", ("ratio/max",)),
    Panel("Clipped and truncated", ("clipped", "truncated"), limits=(0.0, None)),
    Panel("Groups without signal", ("groups/no_signal",), limits=(0.0, None)),
    Panel("Spread of reward", ("reward/std",)),
    Panel("Gradient norm", ("gradient_norm",)),
    Panel("Loss", ("loss",)),
    Panel("Value loss", ("value_loss",)),
    Panel("Terms", ("term/*",)),
    Panel("Learning rate", ("lr",)),
    Panel("Tokens per second", ("tokens_per_second",)),
)


def grouped(known: Iterable[str]) -> tuple[tuple[Panel, ...], tuple[Panel, ...]]:
    """(main figures, further figures) for a run with these metrics: where nothing is rewarded, the loss is the main one."""
    if {"reward", "return"} & set(known):
        return MAIN, DIAGNOSTICS
    loss = tuple(panel for panel in DIAGNOSTICS if panel.title == "Loss")
    main = tuple(panel for panel in MAIN if panel.title not in ("Reward", "Return"))
    return loss + main, tuple(panel for panel in DIAGNOSTICS if panel not in loss)
