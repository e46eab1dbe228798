"""The cache folder, and the atomic creation of its entries.

    <root>/                               cache_root(): HONED_CACHE, or the platform's cache folder
        models/                           a kind; CACHEDIR.TAG marks it as ours (and tells backups to skip it)
            smollm2-135m-instruct-v1/     an entry; honed_model.json lists the files of a complete one
            .work-<host>-<pid>-<random>/  incomplete; removed by its process, or by others once that process is dead

An entry gets its final name by one rename of a finished, flushed folder: readers see the whole entry or none.
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
    """One entry of the cache.

    Attributes:
        kind: its parent folder's name.
        size: bytes.
        made: modification time, in seconds since the epoch.
        about: a description; "" for entries of older versions.
    """

    path: Path
    kind: str
    size: int
    made: float = 0.0
    about: str = ""


def cache_root() -> Path:
    """The cache folder, which need not exist: HONED_CACHE, else honed in LOCALAPPDATA, XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("HONED_CACHE"):
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "honed"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    return (Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache") / "honed"


def cache_folder(kind: str, *, root: Path | None = None) -> Path:
    """Returns the folder for one kind of entries; creates it if missing.

    Raises:
        RunError: the folder cannot be created.
    """
    folder = (root or cache_root()) / kind
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A non-empty folder may be the user's own, so only an empty one gets the tag that allows `clear_cache` to
        # delete from it.
        if not any(folder.iterdir()):
            (folder / TAG_FILE).write_text(TAG, encoding="utf-8")
    return folder


def cache_entries(*, kind: str | None = None, named: str | None = None, root: Path | None = None) -> list[CacheEntry]:
    """Entries of the cache, sorted by kind and name; folders that honed did not create are skipped.

    Args:
        kind: only entries of this kind.
        named: only entries with this word in `CacheEntry.about`, or whose folder name starts with it.
        root: the cache folder; None for `cache_root()`.
    """
    folders = sorted(tag.parent for tag in (root or cache_root()).glob(f"*/{TAG_FILE}"))
    chosen = (folder for folder in folders if kind in (None, folder.name))
    entries = (_entry(path) for folder in chosen for path in sorted(folder.iterdir()) if path.name != TAG_FILE)
    return [entry for entry in entries if _is_called(entry, named)]


def clear_cache(*, kind: str | None = None, named: str | None = None, root: Path | None = None) -> list[CacheEntry]:
    """Deletes the entries that `cache_entries` finds and returns them; work folders of live processes stay.

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
    except (OSError, ValueError, AttributeError):  # a file, an incomplete folder, or an entry of an older version
        about = ""
    made = path.lstat().st_mtime
    return CacheEntry(path=path, kind=path.parent.name, size=size_of(path), made=made, about=str(about))


def _is_called(entry: CacheEntry, name: str | None) -> bool:
    if name is None or entry.path.name.startswith(name):
        return True
    return re.search(rf"(?<![^\s,]){re.escape(name)}(?![^\s,:])", entry.about) is not None


def size_of(path: Path) -> int:
    """Size in bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def cache_errors(place: Path) -> AbstractContextManager[None]:
    """Turns an OSError in the block (disk full, read-only, a file in the way) into a RunError."""
    return storage_errors(place, elsewhere="set HONED_CACHE to another folder", every=True)


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A new folder inside `parent`, always removed at the end; also removes work folders of dead processes."""
    sweep_stale(parent)
    folder = parent / f".work-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_stale(parent: Path) -> None:
    """Removes the work folders in `parent` whose processes are gone."""
    for folder in parent.glob(".work-*"):
        if _WORK_NAME.fullmatch(folder.name) and not in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)


def in_use(folder: Path) -> bool:
    """False if the process of a work folder is known to be dead, or the folder is a day old."""
    match = _WORK_NAME.fullmatch(folder.name)
    if match and match["host"] == _host() and not process_alive(int(match["pid"])):
        return False
    try:
        return time.time() - folder.stat().st_mtime < SECONDS_UNTIL_STALE
    except OSError:  # removed by another process in the meantime
        return True


def keep(final: Path, write: Callable[[Path], None], *, source_sha256: str, converter: int, about: str) -> None:
    """Writes an entry in a work folder, then publishes it and its manifest at `final`; an intact entry there stays."""
    with work_folder(final.parent) as work:
        write(work / "made")
        write_manifest(work / "made", source_sha256=source_sha256, converter=converter, about=about)
        fault = partial(manifest_fault, source_sha256=source_sha256, converter=converter)
        publish(work / "made", final, fault)


def publish(made: Path, final: Path, fault: Callable[[Path], str | None]) -> None:
    """Moves the finished folder `made` to `final` by a rename; an intact folder that is already there stays.

    Args:
        made: a finished folder inside a work folder on the same file system. It is moved, or left to be removed with
            the work folder.
        final: where readers look.
        fault: describes what is wrong with a folder; returns None for an intact one.

    Raises:
        OSError: the rename failed for a reason other than an existing folder.
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
            # Broken: move it into our work folder, which is removed at the end. Another process may do so first.
            with suppress(FileNotFoundError):
                final.rename(made.parent / f"set-aside-{attempt}")
        else:
            _flush(final.parent)
            return
    raise FileExistsError(f"{final} is in the way")


def flush_folder(folder: Path) -> None:
    """Calls fsync on every file in `folder` and on the folder, so that it survives a power cut after the rename."""
    for file in sorted(folder.iterdir()):
        _flush(file)
    _flush(folder)


def write_manifest(folder: Path, *, source_sha256: str, converter: int, about: str = "") -> None:
    """Records the files of a complete `folder` and their checksums; call it last. `about`: a description."""
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
    """Describes what is wrong with a folder; None if it is intact.

    Sizes are always compared. Contents (CRC-32) are compared only if a file's modification time has changed.
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
    """The first file whose content differs from the record; "" if none does, or in folders of older versions."""
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
        if sys.platform == "win32":  # Windows cannot open folders; NTFS journals the rename itself
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
    """This machine's name, limited to characters that are safe in the name of a work folder."""
    return re.sub(r"[^0-9A-Za-z.]", "_", socket.gethostname()) or "unnamed"


def process_alive(pid: int) -> bool:
    """False if this machine has no process with this ID; True if the system does not tell."""
    if sys.platform == "win32":  # os.kill(pid, 0) would send Ctrl-C on Windows: rely on the folder's age alone
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process, or an invalid pid: rely on the age
        return True
    return True
