"""A language model behind an OpenAI-compatible endpoint proposes the operations: the semantic advantage of a group.

Only the standard library; the key is read from the environment and is kept nowhere.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.search.library import Library, Operation, Rule

SUMMARISE = """One attempt at a problem follows, with the reward that it was given. Summarise in a few sentences, step by step, what was
done, and where it helped or went wrong.

Problem: {prompt}
Attempt: {completion}
Reward: {reward}"""
COMPARE = """Several attempts at one problem follow, with their rewards, and the library of rules that they were made with. Say to yourself
why the better ones were better. Then propose at most {most} changes of the library, so that its rules, which are short, general and about
this kind of problem, make such attempts likelier. Answer with a JSON list and nothing else. Its entries are
{{"operation": "add", "rule": TEXT}}, {{"operation": "modify", "name": NAME, "rule": TEXT}}, {{"operation": "delete", "name": NAME}} or
{{"operation": "keep", "name": NAME}}.

Problem: {prompt}
{answer}{attempts}
Library:
{library}"""
KEYS = {"add": ("rule",), "modify": ("name", "rule"), "delete": ("name",), "keep": ("name",)}
BUSY = 429, 500, 502, 503, 504  # what a server says when it may do better later


class Malformed(QuatrainError):
    """The model answered, but not with operations."""


@dataclass(frozen=True)
class Endpoint:
    """Asks a chat model: for a summary of every attempt (``summarise``), then for operations, group by group.

    base_url   up to and without ``/chat/completions``; empty: the environment's OPENAI_BASE_URL.
    model      its name there; empty: OPENAI_MODEL.
    key        the environment variable that holds the key; it may be unset where the server asks for none.
    answers    tell the reference answer, where the task has one.
    most       operations per group. timeout: seconds per request. tries: per request, and for an answer that can be read; between them
               the wait doubles from ``wait`` seconds.

    Raises QuatrainError where there is no endpoint, where it refuses or stays silent, and where its answers are no operations.
    """

    base_url: str = ""
    model: str = ""
    key: str = "OPENAI_API_KEY"
    summarise: bool = True
    answers: bool = True
    most: int = 3
    timeout: float = 120.0
    tries: int = 3
    wait: float = 1.0
    needs = ("reward", "prompt")

    def check(self, task: Any) -> None:
        """Refuse what cannot work before anything runs. Nothing is asked yet."""
        for name, value in (("base_url", self._url()), ("model", self._model())):
            if not value:
                raise QuatrainError(
                    f"the proposer has no {name}",
                    expected="an OpenAI-compatible endpoint",
                    fix=f"{name}=…, or OPENAI_{name.upper()} in the environment",
                )
        if not self._url().startswith(("http://", "https://")):
            raise QuatrainError("an endpoint is reached by http or https", given=self._url())
        if not hasattr(task, "reward"):
            raise QuatrainError("a language model compares texts, and this task has none", given=task.name, fix="propose=contrasts")

    def __call__(self, state: Any, library: Library, batch: Batch) -> list[Operation]:
        found: list[Operation] = []
        for key in batch["prompt"].unique().tolist():
            found += self.operations(library, batch.take(batch["prompt"] == key))
            state.spent["proposer/groups"] += 1
        return found

    def operations(self, library: Library, group: Batch) -> list[Operation]:
        """What the model proposes for the rows of one group."""
        prompt, answer = group.notes["prompt"][0], group.notes.get("answer", ("",))[0]
        rewards = group["reward"].tolist()
        texts = list(group.notes["completion"])
        if self.summarise:
            texts = [
                self.ask(SUMMARISE.format(prompt=prompt, completion=text, reward=f"{reward:g}"))
                for text, reward in zip(texts, rewards, strict=True)
            ]
        attempts = "\n".join(
            f"Attempt {n} (reward {reward:g}): {text}" for n, (text, reward) in enumerate(zip(texts, rewards, strict=True), 1)
        )
        known = "\n".join(f"{rule.name}: {rule.text}" for rule in library.rules) or "(empty)"
        told = f"Reference answer: {answer}\n" if answer and self.answers else ""
        question = COMPARE.format(most=self.most, prompt=prompt, answer=told, attempts=attempts, library=known)
        for attempt in range(self.tries):
            try:
                return parse_operations(self.ask(question), {rule.name for rule in library.rules}, self.most)
            except Malformed:
                if attempt == self.tries - 1:
                    raise
        return []

    def ask(self, text: str) -> str:
        """The model's answer to one user's message."""
        body = {"model": self._model(), "messages": [{"role": "user", "content": text}]}
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {secret}"
        address = self._url().rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        answer = self._sent(request, address)
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise QuatrainError("the endpoint's answer is no chat completion", given=answer[:200], expected="choices[0].message.content")
        return content

    def _sent(self, request: urllib.request.Request, address: str) -> str:
        why = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return response.read().decode("utf-8", "replace")
            except urllib.error.HTTPError as error:
                why = f"{error.code} {error.reason}: {error.read()[:200].decode('utf-8', 'replace')}"
                if error.code not in BUSY:
                    raise QuatrainError(
                        "the endpoint refuses", given=f"{address}: {why}", fix=f"the model's name, and the key in ${self.key}"
                    ) from None
            except (urllib.error.URLError, OSError) as error:
                why = str(getattr(error, "reason", error)) or type(error).__name__
        raise QuatrainError(
            f"the endpoint did not answer in {self.tries} tries", given=f"{address}: {why}", fix="start it, or resume=true later"
        )

    def _url(self) -> str:
        return self.base_url or os.environ.get("OPENAI_BASE_URL", "")

    def _model(self) -> str:
        return self.model or os.environ.get("OPENAI_MODEL", "")


def parse_operations(text: str, names: set[str], most: int) -> list[Operation]:
    """The operations of a JSON list, alone or in one fenced block. ``names``: of the rules that there are.

    Raises Malformed for anything but a list of at most ``most`` objects with exactly the keys of their operation.

    >>> parse_operations('[{"operation": "delete", "name": "R1"}]', {"R1"}, 3)
    [Operation(kind='delete', name='R1', rule=None)]
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)```\s*", text, re.DOTALL)
    try:
        found = json.loads(fenced.group(1) if fenced else text)
    except ValueError as error:
        raise Malformed("the model's answer is no JSON", given=text[:200], fix=str(error)) from None
    if not isinstance(found, list) or len(found) > most:
        raise Malformed("the model's answer is no list of operations", given=text[:200], expected=f"a list of at most {most}")
    return [_operation(entry, names) for entry in found]


def _operation(entry: Any, names: set[str]) -> Operation:
    kind = entry.get("operation") if isinstance(entry, Mapping) else None
    wanted: Sequence[str] = KEYS.get(kind, ()) if isinstance(kind, str) else ()
    right = bool(wanted) and set(entry) == {"operation", *wanted}
    right = right and all(isinstance(entry[name], str) and entry[name].strip() for name in wanted)
    if not right or ("name" in wanted and entry["name"] not in names):
        raise Malformed(
            "this is no operation on the library",
            given=entry,
            expected=f"the keys of {', '.join(KEYS)}; names {', '.join(sorted(names)) or 'none'}",
        )
    return Operation(kind, entry.get("name", ""), Rule(entry["rule"].strip()) if "rule" in wanted else None)
