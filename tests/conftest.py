"""What holds for every test: offline, seeded, and the shared data where they are."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The Hugging Face libraries read these when they are imported; pytest loads this file before any test module.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",  # its threads do not outlive a fork, and it warns of that
)

ROOT = Path(__file__).resolve().parent.parent
SEED = 0


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """Fails whoever connects to another machine.

    It raises pytest's own `Failed`, which is no `Exception`: a library that takes a failed download lightly
    cannot swallow it. Child processes are held by the environment variables above only.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, _loopback_only(getattr(socket.socket, name)))
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Starts each test from the same seed, whichever tests ran before it; imports nothing to do so."""
    random.seed(SEED)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(SEED)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(SEED)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder `data` of `shared/`, which lies beside the checkout or where HONED_SHARED says."""
    folder = Path(os.environ.get("HONED_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; HONED_SHARED=FOLDER names another place that holds data/")
    return folder


def _loopback_only(method: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, *args: Any) -> Any:
        # The address comes last: connect(address), sendto(data, address), sendto(data, flags, address).
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(args[-1][0]):
            pytest.fail(f"tests are offline, but this one connects to {args[-1]}")
        return method(self, *args)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
