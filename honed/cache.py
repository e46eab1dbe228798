"""The cache folder, and how its entries are made safely.

    <root>/                               cache_root(): HONED_CACHE, or the platform's cache folder
        models/                           a kind; CACHEDIR.TAG marks it as ours (and tells backups to skip it)
            smollm2-135m-instruct-v1/     an entry: honed_model.json says which files make it whole
            .work-<host>-<pid>-<random>/  half-made; removed by its maker, or by others once the maker is dead

An entry appears under its final name by one rename of a finished, flushed folder: readers see all or nothing.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from honed.errors import storage_errors

MANIFEST = "honed_model.json"
TAG_FILE = "CACHEDIR.TAG"
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by honed; safe to delete. See https://bford.info/cachedir/\n"
SECONDS_UNTIL_STALE = 24 * 3600.0
PUBLISH_ATTEMPTS = 5

_WORK_NAME = re.compile(r"\.work-(?P<host>[^-]+)-(?P<pid>\d+)-[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One thing in the cache.

    Attributes:
        kind: its parent folder's name.
        size: bytes.
        made: seconds since the epoch.
        about: what it is, in words; "" in entries of older versions.
    """

    path: Path
    kind: str
    size: int
    made: float = 0.0
    about: str = ""


def cache_root() -> Path:
    """The cache folder, made or not: HONED_CACHE, else honed in LOCALAPPDATA, XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("HONED_CACHE"):
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "honed"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    return (Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache") / "honed"


def cache_folder(kind: str, *, root: Path | None = None) -> Path:
    """Makes (where missing) and returns the folder of one kind of entries.

    Raises:
        RunError: the folder cannot be made.
    """
    folder = (root or cache_root()) / kind
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A folder with something in it may be a user's own, so only an empty one gets the mark that lets
        # `clear_cache` delete from it.
        if not any(folder.iterdir()):
            (folder / TAG_FILE).write_text(TAG, encoding="utf-8")
    return folder


def cache_entries(*, kind: str | None = None, named: str | None = None, root: Path | None = None) -> list[CacheEntry]:
    """What is in the cache, by kind and name; folders that honed did not make are not looked into.

    Args:
        kind: only those of this kind.
        named: only those of whose words this is one (`CacheEntry.about`), or with which the folder's name begins.
        root: the cache; None for `cache_root()`.
    """
    folders = sorted(tag.parent for tag in (root or cache_root()).glob(f"*/{TAG_FILE}"))
    chosen = (folder for folder in folders if kind in (None, folder.name))
    entries = (_entry(path) for folder in chosen for path in sorted(folder.iterdir()) if path.name != TAG_FILE)
    return [entry for entry in entries if _is_called(entry, named)]


def clear_cache(*, kind: str | None = None, named: str | None = None, root: Path | None = None) -> list[CacheEntry]:
    """Deletes what `cache_entries` finds and returns it; folders that a live process fills stay.

    Raises:
        RunError: an entry cannot be deleted.
    """
    chosen = [
        entry
        for entry in cache_entries(kind=kind, named=named, root=root)
        if not (_WORK_NAME.fullmatch(entry.path.name) and in_use(entry.path))
    ]
    for entry in chosen:
        with cache_errors(entry.path):
            shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink()
    return chosen


def _entry(path: Path) -> CacheEntry:
    try:
        about = json.loads((path / MANIFEST).read_text(encoding="utf-8")).get("about", "")
    except (OSError, ValueError, AttributeError):  # a file, a folder that is being made, an older honed's
        about = ""
    made = path.lstat().st_mtime
    return CacheEntry(path=path, kind=path.parent.name, size=size_of(path), made=made, about=str(about))


def _is_called(entry: CacheEntry, name: str | None) -> bool:
    if name is None or entry.path.name.startswith(name):
        return True
    return re.search(rf"(?<![^\s,]){re.escape(name)}(?![^\s,:])", entry.about) is not None


def size_of(path: Path) -> int:
    """Bytes in a file, or in all files below a folder."""
    if not path.is_dir():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def cache_errors(place: Path) -> AbstractContextManager[None]:
    """Turns an OSError of the block (disk full, read-only, a file in the way) into a RunError."""
    return storage_errors(place, elsewhere="set HONED_CACHE to another folder", every=True)


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A new folder inside `parent`, removed at the end whatever happens; sweeps those of the dead, too."""
    sweep_stale(parent)
    folder = parent / f".work-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_stale(parent: Path) -> None:
    """Removes the work folders below `parent` whose makers are gone."""
    for folder in parent.glob(".work-*"):
        if _WORK_NAME.fullmatch(folder.name) and not in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)


def in_use(folder: Path) -> bool:
    """False when a work folder's process is known to be dead, or the folder is a day old."""
    match = _WORK_NAME.fullmatch(folder.name)
    if match and match["host"] == _host() and not process_alive(int(match["pid"])):
        return False
    try:
        return time.time() - folder.stat().st_mtime < SECONDS_UNTIL_STALE
    except OSError:  # removed by another process meanwhile
        return True


def keep(final: Path, write: Callable[[Path], None], *, source_sha256: str, converter: int, about: str) -> None:
    """Makes an entry aside, by `write`, and publishes it at `final` with its manifest; a sound one there stays."""
    with work_folder(final.parent) as work:
        write(work / "made")
        write_manifest(work / "made", source_sha256=source_sha256, converter=converter, about=about)
        fault = partial(manifest_fault, source_sha256=source_sha256, converter=converter)
        publish(work / "made", final, fault)


def publish(made: Path, final: Path, fault: Callable[[Path], str | None]) -> None:
    """Puts the finished folder `made` at `final` by a rename; where a sound folder is already, that stays.

    Args:
        made: a finished folder inside a work folder of the same file system; gone afterwards, or left for the
            work folder's end.
        final: where readers look.
        fault: says what is wrong with a folder, or None.

    Raises:
        OSError: the rename failed for another reason than a folder in the way.
    """
    flush_folder(made)
    for attempt in range(PUBLISH_ATTEMPTS):
        try:
            made.rename(final)
        except OSError:
            if not final.exists():
                raise
            if fault(final) is None:
                return
            # Broken: out of the way, into our work folder, to go when it goes. Another process may be first.
            with suppress(FileNotFoundError):
                final.rename(made.parent / f"set-aside-{attempt}")
        else:
            _flush(final.parent)
            return
    raise FileExistsError(f"{final} is in the way")


def flush_folder(folder: Path) -> None:
    """fsync of every file in `folder` and of itself, so that what is renamed next outlives a power cut."""
    for file in sorted(folder.iterdir()):
        _flush(file)
    _flush(folder)


def write_manifest(folder: Path, *, source_sha256: str, converter: int, about: str = "") -> None:
    """Records which files, with which content, make `folder` whole; to be called last. `about`: what it is."""
    files = sorted(folder.iterdir())
    record = {
        "made_by": "honed",
        "about": about,
        "converter": converter,
        "source_sha256": source_sha256,
        "files": {file.name: file.stat().st_size for file in files},
        "written_ns": {file.name: file.stat().st_mtime_ns for file in files},
        "crc32": {file.name: _crc32(file) for file in files},
    }
    (folder / MANIFEST).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def manifest_fault(folder: Path, *, source_sha256: str, converter: int) -> str | None:
    """What is wrong with a folder, in words, or None.

    Sizes are compared always; contents, by their CRC-32, where a file's time says that it was written to or copied.
    """
    try:
        record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (record["source_sha256"], record["converter"]) != (source_sha256, converter):
            return "it was made from another source or by another version of honed"
        sizes = {name: _size_or_zero(folder / name) for name in record["files"]}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, size in record["files"].items():
        if sizes[name] != size:
            return f"{name} has {sizes[name]} of {size} bytes"
    changed = _changed_file(folder, record)
    return f"{changed} is not what was written" if changed else None


def _changed_file(folder: Path, record: dict[str, Any]) -> str:
    """The first file whose content differs from the record; "" without one, and in folders of older versions."""
    written = record.get("written_ns", {})
    for name, crc32 in record.get("crc32", {}).items():
        if (folder / name).stat().st_mtime_ns != written.get(name) and _crc32(folder / name) != crc32:
            return str(name)
    return ""


def _crc32(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _size_or_zero(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _flush(path: Path) -> None:
    if path.is_dir():
        if sys.platform == "win32":  # folders cannot be opened there; NTFS journals the rename itself
            return
        flags = os.O_RDONLY
    else:
        flags = os.O_RDWR
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _host() -> str:
    """This machine's name with only characters that are safe in the name of a work folder."""
    return re.sub(r"[^0-9A-Za-z.]", "_", socket.gethostname()) or "unnamed"


def process_alive(pid: int) -> bool:
    """False when this machine has no process of that number; True where the system does not tell."""
    if sys.platform == "win32":  # os.kill(pid, 0) would send Ctrl-C there: go by the folder's age alone
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # someone else's, or no pid at all: go by the age
        return True
    return True
