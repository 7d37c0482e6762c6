"""Settings that several claims share: a task, the model that suits it, how long, and how much is held out."""

from __future__ import annotations

LETTERS = {"task": "letters", "model": "tiny", "steps": 200, "prompts": 16, "eval_count": 512, "eval_every": 50}
