"""Settings that several claims share: a task, the model that suits it, how long, and how much is held out."""

from __future__ import annotations

LETTERS = {"task": "letters", "model": "tiny", "steps": 200, "prompts": 16, "eval_count": 512, "eval_every": 50}
MODES = LETTERS | {"task": "letters:modes?levels=1-5", "model": "tiny:modes", "eval_samples": 4, "eval_every": 100}
