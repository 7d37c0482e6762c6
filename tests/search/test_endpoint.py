"""The proposer behind an endpoint, against a server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.search.endpoint import Endpoint, Malformed, parse_operations
from quatrain.search.library import Library, Operation, Rule
from quatrain.search.revisions import Revise
from quatrain.training.state import State

TASK = SimpleNamespace(name="texts", reward=lambda: None)


@contextmanager
def server(*answers: Any) -> Iterator[tuple[Endpoint, list[dict]]]:
    """An endpoint that gives these answers in turn, the last one again and again: a text, a status, or raw bytes."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            answer = answers[min(len(seen), len(answers)) - 1]
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            text = json.dumps({"choices": [{"message": {"content": answer}}]}).encode() if isinstance(answer, str) else answer
            self.wfile.write(text if isinstance(text, bytes) else b"why not")

        def log_message(self, *args: Any) -> None: ...

    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield Endpoint(f"http://127.0.0.1:{made.server_port}/v1", "judge", timeout=5, wait=0.0, summarise=False), seen
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def group(reward: tuple[float, ...] = (1.0, 0.0)) -> Batch:
    n = len(reward)
    notes = {"prompt": ("2+2=",) * n, "completion": ("4", "5")[:n], "answer": ("4",) * n}
    rows = {"reward": torch.tensor(reward), "prompt": torch.zeros(n, dtype=torch.long)}
    return Batch(torch.ones(n, 1, dtype=torch.bool), torch.zeros(n, 1, dtype=torch.long), {}, rows, notes=notes)


ADD = '[{"operation": "add", "rule": "Count twice."}]'


def test_a_group_becomes_operations(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    library = Library().apply([Operation("add", rule=Rule("Guess."))])
    with server("tried 4", "tried 5", ADD) as (endpoint, seen):
        (new,) = Revise(replace(endpoint, summarise=True))(State(TASK, {}), library, group())
    assert [rule.text for rule in new.rules] == ["Guess.", "Count twice."]
    assert [one["path"] for one in seen] == ["/v1/chat/completions"] * 3 and {one["key"] for one in seen} == {"Bearer s3cret"}
    asked = seen[-1]["messages"][0]["content"]
    assert all(part in asked for part in ("R1: Guess.", "tried 4", "tried 5", "reward 1", "Reference answer: 4", "2+2="))
    assert seen[-1]["model"] == "judge" and "s3cret" not in repr(endpoint)


def test_groups_without_a_contrast_are_not_asked_about(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with server(ADD) as (endpoint, seen):
        assert Revise(endpoint)(State(TASK, {}), Library(), group((1.0, 1.0))) == []
        assert seen == []
        Revise(replace(endpoint, answers=False))(State(TASK, {}), Library(), group())
        assert seen[0]["key"] is None and "Reference" not in seen[0]["messages"][0]["content"]


def test_a_busy_server_and_a_confused_model_are_asked_again():
    with server(503, "I think that", ADD) as (endpoint, seen):
        assert endpoint.operations(Library(), group()) == [Operation("add", rule=Rule("Count twice."))]
        assert len(seen) == 3


def test_what_cannot_work_is_said_in_sentences(monkeypatch):
    with server(401) as (endpoint, seen), pytest.raises(QuatrainError, match=r"refuses[\s\S]*401[\s\S]*why not"):
        endpoint.ask("?")
    assert len(seen) == 1
    with server(500) as (endpoint, seen), pytest.raises(QuatrainError, match=r"did not answer in 3 tries[\s\S]*500"):
        endpoint.ask("?")
    assert len(seen) == 3
    with server(b"<html>") as (endpoint, _), pytest.raises(QuatrainError, match="no chat completion"):
        endpoint.ask("?")
    with server("no") as (endpoint, seen), pytest.raises(Malformed, match="no JSON"):
        endpoint.operations(Library(), group())
    assert len(seen) == 3
    with pytest.raises(QuatrainError, match="did not answer"):  # nobody is there any more
        endpoint.ask("?")


def test_it_is_checked_before_anything_runs(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    Endpoint("http://here", "m").check(TASK)
    for wrong, why in ((Endpoint(), "no base_url"), (Endpoint("http://here"), "no model"), (Endpoint("file:///x", "m"), "http or https")):
        with pytest.raises(QuatrainError, match=why):
            wrong.check(TASK)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://there"), monkeypatch.setenv("OPENAI_MODEL", "m")
    Endpoint().check(TASK)
    with pytest.raises(QuatrainError, match="compares texts"):
        Endpoint().check(SimpleNamespace(name="tables"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "add a rule", "{}", "[1]", '["add"]', '[{"operation": "add"}]', '[{"operation": "add", "rule": " "}]'),
        *(
            '[{"operation": "add", "rule": "x", "why": "y"}]',
            '[{"operation": "ADD", "rule": "x"}]',
            '[{"operation": "delete", "name": "R7"}]',
        ),
        *('[{"operation": "add", "rule": 3}]', '[{"operation": ["add"]}]', "[" + ", ".join([ADD[1:-1]] * 4) + "]", f"Sure: {ADD}"),
    ],
)
def test_operations_are_read_strictly(text: str):
    with pytest.raises(Malformed):
        parse_operations(text, {"R1"}, 3)


def test_operations_may_stand_in_a_fenced_block():
    text = '```json\n[{"operation": "modify", "name": "R1", "rule": "x"}, {"operation": "keep", "name": "R1"}]\n```'
    assert [one.kind for one in parse_operations(text, {"R1"}, 3)] == ["modify", "keep"]
    assert parse_operations("[]", set(), 3) == []
