"""What rollouts and updates would last on a machine of their own: a clock for engines that are simulated in one process."""

from __future__ import annotations

from dataclasses import dataclass

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob


@dataclass(frozen=True)
class Clock:
    """Simulated seconds. One machine decodes and trains in turn, or a share of it decodes while the rest trains.

    step   of one token for however many rows: what a step costs that moves the weights through the memory.
    row    of one token for each row on the whole machine: h(H) = step + row·H/share, so that a row costs less in company.
    token  of training on one token on the whole machine.
    share  of the machine that decodes where both run at the same time, in (0, 1).

    Prefilling, rewards and the transfer of weights cost nothing.
    """

    step: float | Knob = 0.02
    row: float | Knob = 0.02 / 64
    token: float | Knob = 0.0004
    share: float | Knob = 0.5

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("step", "row", "token", "share")}
        for name, value in numbers.items():
            if isinstance(value, (int, float)) and not (0 < value < 1 if name == "share" else value >= 0):
                raise QuatrainError(
                    f"a clock's {name} is out of range", given=value, expected="above 0 and below 1" if name == "share" else "≥ 0"
                )

    def decoding(self, rows: int, together: bool) -> float:
        """Seconds of one more token for that many rows; ``together`` with training.

        >>> Clock(step=2.0, row=0.5).decoding(4, False), Clock(step=2.0, row=0.5).decoding(4, True)
        (4.0, 6.0)
        """
        return self.step + self.row * rows / (self.share if together else 1.0)

    def training(self, tokens: int, together: bool) -> float:
        """Seconds of an update on that many tokens."""
        return self.token * tokens / (1.0 - self.share if together else 1.0)
