"""Whole documents: a problem with its solution as one text, of which every token after the first is learnt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quatrain.batch import Batch


def whole_documents(policy: Any, shown: Batch) -> Batch:
    """Demonstrations whose prompts, but for their first token, are actions as well.

    A task without texts (a table) has no prompts, and is left as it is.
    """
    from quatrain.models.scorer import contiguous

    if not len(shown) or "tokens" not in shown.contexts.get("policy", {}):
        return shown
    rows = contiguous(shown, "policy")
    texts = [ids[:length] for ids, length in zip(rows.ids.tolist(), rows.lengths.tolist(), strict=True)]
    made = policy.demonstrate([text[:1] for text in texts], [text[1:] for text in texts])
    return replace(made, rows={**made.rows, **shown.rows}, notes=shown.notes)
