"""What a user is told of a Hub id, held against servers on this machine that answer as the Hub does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from honed import hub
from honed.errors import DataError, HonedError, ModelError
from honed.hub import ask_for_dataset, ask_for_model
from honed.model.load.load import load_tokenizer

Use = Callable[[str], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Use:
    """Lets requests go to an address that stands for the Hub; the cache is empty, and nothing was asked yet."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    monkeypatch.setattr(hub, "_there", set())

    def to(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return to


@contextmanager
def server(status: int, **headers: str) -> Iterator[tuple[str, list[str]]]:
    """Answers every HEAD in one way; gives its address and the paths that were asked for."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", asked
        finally:
            running.shutdown()
            thread.join()


def test_what_is_there_is_asked_for_once(use: Use) -> None:
    with server(200, ETag='"x"', X_Repo_Commit="0" * 40) as (address, asked):
        use(address)
        for _ in range(3):
            ask_for_model("owner/name")
        ask_for_dataset("owner/name")
    assert asked == ["/owner/name/resolve/main/config.json", "/datasets/owner/name/resolve/main/README.md"]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", ["owner/name", "does not show it to you", "check the spelling; ", "hf auth login"]),
        (404, "RepoNotFound", ["has none"]),
        (403, "GatedRepo", ["accepted its terms", "/owner/name, then"]),
        (401, "", ["status 401", "HF_TOKEN"]),
        (403, "", ["status 403"]),
    ],
)
def test_what_the_hub_refuses_is_told(status: int, code: str, words: list[str], use: Use) -> None:
    headers = {"X_Error_Code": code} if code else {"X_Error_Message": "no"}
    with server(status, **headers) as (address, _):
        use(address)
        with pytest.raises(ModelError) as told:
            ask_for_model("owner/name")
    assert all(word in str(told.value) for word in words), told.value


@pytest.mark.parametrize(("status", "code"), [(404, "EntryNotFound"), (404, "RevisionNotFound"), (503, "")])
def test_the_rest_is_left_to_the_libraries(status: int, code: str, use: Use) -> None:
    """A repository without config.json, another branch's, a server that is down for a moment."""
    with server(status, **({"X_Error_Code": code} if code else {})) as (address, asked):
        use(address)
        ask_for_model("owner/name")
    assert len(asked) == 1


@pytest.mark.parametrize(("ask", "kind"), [(ask_for_model, ModelError), (ask_for_dataset, DataError)])
def test_no_connection_is_told_at_once(ask: Callable[[str], None], kind: type[HonedError], use: Use) -> None:
    with socket.socket() as taken:  # bound and not listening: connections to it are refused
        taken.bind(("127.0.0.1", 0))
        use(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(kind, match=r"cannot be reached.*\n.*HF_ENDPOINT.*hf download owner/name"):
            ask("owner/name")


def test_folders_and_what_is_cached_ask_nothing(use: Use, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    with server(404, X_Error_Code="RepoNotFound") as (address, asked):
        use(address)
        ask_for_model(str(tmp_path))
        ask_for_model("owner/name", {"cache_dir": str(tmp_path)})
        ask_for_model("owner/other", {"local_files_only": True})
    assert asked == []


@pytest.mark.parametrize("name", ["owner/name", "own er/na:me"])
def test_offline_and_impossible_names(name: str, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE" if name == "owner/name" else r"nor a Hub id"):
        load_tokenizer(name)
