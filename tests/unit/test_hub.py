"""A hub that cannot be reached: one line, at once, for every verb."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ablate import hub
from ablate.errors import UserError


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a machine that takes every connection and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[tuple[str, list[int]]]:
    """The address of a server, and the status that it answers with."""
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", status
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in hub.OFFLINE:
        monkeypatch.setenv(name, "0")  # set, so that the end of the test restores it
    for name in hub.LOADED:
        if name in sys.modules:
            monkeypatch.setattr(sys.modules[name], "HF_HUB_OFFLINE", False)
    hub.unreachable.cache_clear()
    yield
    hub.unreachable.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once_and_left(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", silent)
    monkeypatch.setattr(hub, "DEADLINE", 0.1)
    assert hub.unreachable() in (
        f"{silent}: no answer within 0.1 s", f"{silent}: timed out"
    )  # fmt: skip
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # for the libraries, and for processes started here
    from huggingface_hub import constants

    assert constants.is_offline_mode()


@pytest.mark.parametrize(
    ("code", "there"), [(200, True), (404, True), (405, True), (500, False), (503, False)]
)
def test_what_a_server_answers(
    answering: tuple[str, list[int]], code: int, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, status = answering
    status[0] = code
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert (hub.unreachable() == "") == there


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1", "http://no.such.name.invalid", "nonsense"]
)
def test_no_server_at_all(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert hub.unreachable().startswith(f"{address}: ")
    assert "\n" not in hub.unreachable()


def test_offline_by_choice_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "_asked", lambda endpoint: pytest.fail("asked"))
    assert hub.unreachable() == "HF_HUB_OFFLINE is set"


def test_data_in_a_cache_are_not_refused(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"dataset.path=me/rows: is not on this machine"):
        hub.check_data("dataset.path=me/rows", "me/rows")
    (tmp_path / "hub" / "datasets--me--rows").mkdir(parents=True)  # type: ignore[operator]
    hub.check_data("dataset.path=me/rows", "me/rows")


@pytest.mark.parametrize(
    "words",
    [
        "run model=hub model.path=a/b train.lr=1e-3",
        "run evaluate.tasks=[ifeval]",
        "sweep dataset=hub dataset.path=a/b train.lr=1e-3 seed=0,1",
        "plan model=hub model.path=a/b train.lr=1e-3",
        "tokens dataset=hub dataset.path=a/b",
        "tune model=hub model.path=a/b",
        "reproduce plw scale=paper",
        "pretrain dataset=hub dataset.path=a/b",
    ],
)
def test_every_verb_says_it_in_one_line(words: str, silent: str, tmp_path: object) -> None:
    out = [] if words.startswith("tokens") else [f"out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "ablate.cli", *words.split(), *out],
        env=os.environ | {"HF_ENDPOINT": silent, "HF_HOME": f"{tmp_path}/hf"},
        capture_output=True,
        text=True,
        timeout=100,  # the libraries' own attempts take longer
    )
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ablate: ")
    assert "is not on this machine, and the hub cannot be reached" in line
