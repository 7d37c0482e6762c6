"""A paper's claim as data, beside its recipe: what is compared, on what, by how many seeds, and what would count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from quatrain.errors import QuatrainError

Kind = Literal["beats", "matches", "correlates", "detects", "equal"]
SMOKE = {"steps": 2, "prompts": 2, "eval_count": 8, "eval_samples": 0}
SMOKE_SEEDS = 2


@dataclass(frozen=True)
class Claim:
    """What a paper says, as something that can fail.

    id        a recipe's name; further claims of one recipe are ``name.what``.
    kind      beats       arms[0] is better than every other arm
              matches     arms[0] is within ``margin`` of every other arm
              correlates  the correlation that ``measure`` returns is above ``chance`` (0)
              detects     the score that ``measure`` returns is above ``chance`` (0.5 for an area under a ROC curve)
              equal       a theorem or an identity: the error that ``measure`` returns is at most ``tolerance``, for every seed
    says      the claim in a sentence. stand_in: what the miniature has in place of the paper's models and data. why: why a verdict
              other than ``reproduced`` may be no word against the paper, or what the miniature cannot show.
    arms      label → arm (a text, an Arm, a Recipe, a named function that returns one), or a tuple of texts, as for ``compare``.
              With ``measure``: the labels of the numbers that it returns.
    measure   a named function ``(seed, **settings) → {label: number}`` in place of training runs.
    settings  of all arms (task, steps …), or arguments of ``measure``; ``smoke``: what else they are in a run of seconds.
    metric    the held-out number that the verdict is about; ``higher`` is better or not.
    seeds     how many, paired. budget: the currency in which arms spend equally.
    """

    id: str
    kind: Kind
    says: str
    arms: Mapping[str, Any] | tuple[str, ...] = ()
    measure: Callable[..., Mapping[str, float]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    smoke: Mapping[str, Any] | None = None
    metric: str = "accuracy"
    higher: bool = True
    seeds: int = 5
    budget: str = "updates"
    margin: float | None = None
    chance: float = 0.0
    tolerance: float | None = None
    stand_in: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        wrong = ""
        if self.kind not in get_args(Kind):
            wrong = f"kind is one of {', '.join(get_args(Kind))}"
        elif self.kind in ("beats", "matches") and len(self.arms) < 2:
            wrong = f"a claim that something {self.kind} has two arms or more"
        elif self.kind in ("correlates", "detects", "equal") and self.measure is None:
            wrong = f"a claim of kind {self.kind} has a function measure"
        elif (self.kind == "matches") != (self.margin is not None):
            wrong = "matches, and nothing else, states a margin"
        elif (self.kind == "equal") != (self.tolerance is not None):
            wrong = "equal, and nothing else, states a tolerance"
        elif self.seeds < (1 if self.kind == "equal" else 3):
            wrong = "an interval needs three seeds or more"
        if wrong:
            raise QuatrainError(f"claim {self.id!r}: {wrong}", given=f"kind={self.kind}, arms={list(self.arms)}, seeds={self.seeds}")

    @property
    def system(self) -> str:
        """The recipe that it is about."""
        return self.id.partition(".")[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its numbers, the system's first."""
        return tuple(self.arms) or (self.metric,)


CLAIMS: dict[str, Claim] = {}


def claim(id: str, kind: Kind, says: str, **fields: Any) -> Claim:
    """Register a claim; see ``Claim``. Raises QuatrainError if it is incomplete, or if its name is taken."""
    made = Claim(id, kind, says, **fields)
    if id in CLAIMS and CLAIMS[id] != made:
        raise QuatrainError("two claims have one name", given=id, fix=f"{id}.what")
    CLAIMS[id] = made
    return made
