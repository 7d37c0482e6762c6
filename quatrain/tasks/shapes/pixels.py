"""Images as arrays, and back: every token of the codebook is a patch of 8 × 8 pixels."""

from __future__ import annotations

from typing import Any

from quatrain.errors import QuatrainError
from quatrain.tasks.shapes.scenes import BLANK, CODEBOOK, CODES, SIDE

PATCH = 8  # pixels along a token
RGB = ((0.9, 0.1, 0.1), (0.95, 0.85, 0.1), (0.1, 0.7, 0.2), (0.15, 0.3, 0.9))  # by colour; the ground is white


def patches() -> Any:
    """[13, 8, 8, 3] floats in [0, 1]: what each token of the codebook looks like."""
    import numpy as np

    x, y = np.meshgrid(*[np.arange(PATCH) - (PATCH - 1) / 2] * 2)
    up = 0.2 - y / 3.2
    inside = (x**2 + y**2 < 11, np.maximum(abs(x), abs(y)) < 3, ((x / 2.9) ** 2 + up**2 - 1) ** 3 < (x / 2.9) ** 2 * up**3)
    made = [np.ones((PATCH, PATCH, 3))]
    made += [np.where(inside[form][..., None], RGB[colour], 1.0) for colour, codes in enumerate(CODES) for form in range(len(codes))]
    return np.stack(made)


def render(text: str) -> Any:
    """[32, 32, 3] floats in [0, 1] of an image of 16 tokens. Raises QuatrainError for a text that is no image."""
    import numpy as np

    if len(text) != SIDE * SIDE or set(text) - set(CODEBOOK):
        raise QuatrainError(
            "this is no image", given=repr(text), expected=f"{SIDE * SIDE} characters of {CODEBOOK}", fix=f"{BLANK} is a blank"
        )
    cells = patches()[[CODEBOOK.index(code) for code in text]].reshape(SIDE, SIDE, PATCH, PATCH, 3)
    return np.ascontiguousarray(cells.transpose(0, 2, 1, 3, 4)).reshape(SIDE * PATCH, SIDE * PATCH, 3)


def tokenise(pixels: Any) -> str:
    """The 16 tokens of an array [32, 32, 3]: of each patch the nearest of the codebook, by squares. → ``render``'s inverse.

    Raises QuatrainError for another shape.
    """
    import numpy as np

    pixels = np.asarray(pixels, dtype=float)
    if pixels.shape != (SIDE * PATCH, SIDE * PATCH, 3):
        raise QuatrainError("an image has another shape", given=pixels.shape, expected=(SIDE * PATCH, SIDE * PATCH, 3))
    cells = pixels.reshape(SIDE, PATCH, SIDE, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(SIDE * SIDE, 1, -1)
    nearest = ((cells - patches().reshape(1, len(CODEBOOK), -1)) ** 2).sum(-1).argmin(1)
    return "".join(CODEBOOK[place] for place in nearest)
