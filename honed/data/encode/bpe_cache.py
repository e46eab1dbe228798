"""Caches the result of `bpe.prove` for a tokenizer on disk: the proof takes half a second.

    <cache>/tokenizers/<key>/   tokens.npy  ends.npy  ids.npy     token -> id
                                proven.json                       the rest

The key is a hash of the tokenizer's JSON, of the proof's code and of the versions of both libraries.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from honed.cache import cache_folder, keep, manifest_fault
from honed.data.encode import bpe
from honed.data.encode.bpe import Encode, FastBPE, Proven
from honed.data.encode.tokenizer_state import NoStateError, state_of
from honed.errors import RunError
from honed.quantities import counted

KIND = "tokenizers"
LAYOUT = 1


def cached_bpe(tokenizer: Any, encode: Encode, *, root: Path | None = None) -> FastBPE | None:
    """Returns tiktoken's encoding for this tokenizer if it is proven to produce the same ids, now or before; else None.

    A cache that cannot be read or written only costs time.

    Args:
        tokenizer: a transformers tokenizer; not changed.
        encode: the tokenizer's own encoding: texts -> ids, without special tokens.
        root: the cache; None for honed's own.
    """
    if not bpe.may_be_fast(tokenizer):
        return None
    try:
        state = state_of(tokenizer)
    except NoStateError:
        return None
    key = _key(state)
    with suppress(RunError, OSError):
        folder = cache_folder(KIND, root=root) / key
        if manifest_fault(folder, source_sha256=key, converter=LAYOUT) is None:
            return bpe.made_of(load(folder), encode)
    if (proven := bpe.prove(state, encode)) is None:
        return None
    with suppress(RunError, OSError):
        folder = cache_folder(KIND, root=root) / key
        keep(folder, partial(save, proven), source_sha256=key, converter=LAYOUT, about=_about(tokenizer))
    return bpe.made_of(proven, encode)


def save(proven: Proven, folder: Path) -> None:
    """Writes what `load` reads."""
    folder.mkdir()
    tokens = list(proven.ranks)
    np.save(folder / "tokens.npy", np.frombuffer(b"".join(tokens), dtype=np.uint8))
    np.save(folder / "ends.npy", np.cumsum([len(token) for token in tokens], dtype=np.int64))
    np.save(folder / "ids.npy", np.array(list(proven.ranks.values()), dtype=np.int64))
    record = {"pattern": proven.pattern, "added": proven.added, "normalizes": proven.normalizes}
    (folder / "proven.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


def load(folder: Path) -> Proven:
    """Reads what `save` wrote."""
    spelled = np.load(folder / "tokens.npy").tobytes()
    ends = np.load(folder / "ends.npy").tolist()
    ids = np.load(folder / "ids.npy").tolist()
    tokens = (spelled[start:end] for start, end in zip([0, *ends], ends, strict=False))
    record = json.loads((folder / "proven.json").read_text(encoding="utf-8"))
    return Proven(ranks=dict(zip(tokens, ids, strict=True)), **record)


def _key(state: str) -> str:
    digest = hashlib.sha256(Path(bpe.__file__).read_bytes())
    for part in (version("tokenizers"), version("tiktoken"), state):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _about(tokenizer: Any) -> str:
    name = Path(str(getattr(tokenizer, "name_or_path", ""))).name
    return f"{name or 'a tokenizer'}: {counted(len(tokenizer), 'token')}"
