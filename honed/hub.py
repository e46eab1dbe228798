"""Checks with one request whether the Hub has a repository. Offline, the libraries retry every file six times.

The request respects HF_ENDPOINT (a mirror), proxies, HF_TOKEN and HF_HUB_ETAG_TIMEOUT (seconds, 10), as the libraries
do. Slow answers, server errors and missing files are left to the libraries, which retry.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from honed.errors import DataError, HonedError, ModelError

OF_MODELS = ("config.json", "adapter_config.json", "tokenizer_config.json")
OF_DATASETS = ("README.md",)
NAMED = 8  # of a folder's files in a message
ATTEMPTS = 2
PAUSE = 1.0  # seconds between attempts: a name server may fail once
NO_CONNECTION = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}  # of any httpx package

_there: set[Wanted] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A repository of the Hub, and the files to ask for. `error` is raised if it is not available."""

    name: str
    kind: str
    files: tuple[str, ...]
    error: type[HonedError]
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)


def ask_for_model(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Checks with one request that a model is available; local folders and cached models need none.

    Args:
        name: a folder or Hub id.
        options: keywords of `from_pretrained`; revision, token, cache_dir and local_files_only are used.

    Raises:
        ModelError: the Hub has no such model, refuses access to it, or cannot be reached.
    """
    if not (options or {}).get("local_files_only") and not Path(name).is_dir():
        _ask_once(Wanted(name=name, kind="model", files=OF_MODELS, error=ModelError, options=options or {}))


def ask_for_dataset(name: str) -> None:
    """Checks with one request that a dataset is available; one in the cache of `datasets` needs none.

    Raises:
        DataError: the Hub has no such dataset, refuses access to it, or cannot be reached.
    """
    from datasets import config

    if not (Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        _ask_once(Wanted(name=name, kind="dataset", files=OF_DATASETS, error=DataError))


def _ask_once(wanted: Wanted) -> None:
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    if wanted in _there:
        return
    try:
        if not _is_cached(wanted):
            if constants.is_offline_mode():
                problem = f"{wanted.name} is not here, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set."
                raise wanted.error(problem, fix=f"check the name, unset that, or {_bring(wanted)}")
            _ask(wanted)
    except HFValidationError:
        raise wanted.error(f"{wanted.name!r} is neither here nor a Hub id (owner/name).", fix="check it") from None
    _there.add(wanted)


def _is_cached(wanted: Wanted) -> bool:
    from huggingface_hub import try_to_load_from_cache

    place = {"cache_dir": wanted.options.get("cache_dir"), "revision": wanted.options.get("revision")}
    found = (try_to_load_from_cache(wanted.name, file, repo_type=wanted.kind, **place) for file in wanted.files)
    return any(isinstance(path, str) for path in found)


def _ask(wanted: Wanted) -> None:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    name, hub, login = wanted.name, constants.ENDPOINT, "run `hf auth login` or set HF_TOKEN"
    page = f"{hub}/{'datasets/' if wanted.kind == 'dataset' else ''}{name}"
    try:
        _head(wanted)
    except GatedRepoError:
        fix = f"accept them at {page}, then {login}"
        raise wanted.error(f"{name} is given only to those who accepted its terms.", fix=fix) from None
    except RepositoryNotFoundError:
        owner = "" if "/" in name else " (owner/name; this one has no owner)"
        fix = f"check the spelling{owner}; for a private one, {login}"
        problem = f"{name} is not here{_beside(name)}, and {hub} has none or does not show it to you."
        raise wanted.error(problem, fix=fix) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            problem = f"{page} is refused (status {error.response.status_code})."
            raise wanted.error(problem, fix=f"{login}; a token may be old, or lack the right to read this") from None
    except Exception as error:
        if any(kind.__name__ in NO_CONNECTION for kind in type(error).__mro__):
            fix = f"check the name and the network (HF_ENDPOINT names a mirror), or {_bring(wanted)}"
            problem = f"{name} is not here{_beside(name)}, and {hub} cannot be reached: {error}"
            raise wanted.error(problem, fix=fix) from None


def _head(wanted: Wanted) -> None:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(wanted.name, wanted.files[0], repo_type=wanted.kind, revision=wanted.options.get("revision"))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            get_hf_file_metadata(url, token=wanted.options.get("token"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
            return
        except Exception as error:
            if attempt == ATTEMPTS or type(error).__name__ != "ConnectError":
                raise
        time.sleep(PAUSE)


def _beside(name: str) -> str:
    """What the parent folder of `name` holds, if it exists: "runs/tets" is a misspelled path, not a Hub id."""
    folder = Path(name).parent
    if folder == Path() or not folder.is_dir():
        return ""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f" ({folder} holds {', '.join(names[:NAMED]) or 'nothing'}{', ...' if len(names) > NAMED else ''})"


def _bring(wanted: Wanted) -> str:
    kind = " --repo-type dataset" if wanted.kind == "dataset" else ""
    return f"run `hf download {wanted.name}{kind} --local-dir FOLDER` where there is a network, and name that folder"
