"""A lock that allows one run at a time in a folder, and ends with its process, however that ends.

    <run>/.lock    {"pid": 4711, "host": "box", "boot": "<the machine's start>", "since": "2026-01-01T10:00:00+00:00"}

The operating system's lock on this file decides (flock; on Windows the C runtime's), so a killed run leaves nothing to
clean up. The content names the holder. On file systems without locks (Lustre mounted without `flock`) the content
decides: the lock is held unless its process is known to have ended.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from honed.cache import process_alive
from honed.errors import RunError

LOCK = ".lock"
# Error numbers if another process holds the lock, and if the file system has no locks.
HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def run_lock(folder: Path) -> Iterator[str]:
    """Holds the lock of a run's folder; yields a sentence about a killed run that held it last, or "".

    Only the first rank of a distributed run takes the lock.

    Raises:
        RunError: another run holds it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield ""
        return
    descriptor = _locked(folder)
    try:
        left = _read(descriptor)
        _write(descriptor, _self())
        yield _takeover(left)
    finally:
        _write(descriptor, {})  # Windows cannot delete an open file: leave it empty
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(descriptor)


def _locked(folder: Path) -> int:
    """Opens and locks the file; tries again if its last holder deleted it before it was locked."""
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _try_lock(descriptor):
                raise _in_use(folder, _read(descriptor))
            if _is_at(folder / LOCK, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Tries to take the lock; returns whether it did."""
    try:
        _system_lock(descriptor)
    except OSError as error:
        if error.errno in HELD:
            return False
        if error.errno in NO_LOCKS:
            return not _may_live(_read(descriptor))
        raise
    return True


def _system_lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # after the text, which must remain readable
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _may_live(holder: dict[str, Any]) -> bool:
    """Whether the holder may be running; not if there is none, or it ended, or ran before this machine's last boot."""
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    pid = holder.get("pid")
    return holder.get("boot") == _boot() and isinstance(pid, int) and process_alive(pid)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        found = json.loads(os.read(descriptor, 4096))
    except ValueError:  # empty, or its writer was killed while writing
        return {}
    return found if isinstance(found, dict) else {}


def _write(descriptor: int, holder: dict[str, Any]) -> None:
    with suppress(OSError):  # on a full disk the lock is held without text
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode() if holder else b"")


def _self() -> dict[str, Any]:
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot(), "since": since}


def _boot() -> str:
    """Returns the id of the machine's current boot; "" if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _in_use(folder: Path, holder: dict[str, Any]) -> RunError:
    return RunError(
        f"Another run is using {folder}{_in_words(holder)}.",
        fix="wait for it to end, stop it, or name another folder with output=FOLDER",
    )


def _takeover(left: dict[str, Any]) -> str:
    return f"the run before{_in_words(left)} was killed; its folder is taken over" if left else ""


def _in_words(holder: dict[str, Any]) -> str:
    if not holder:
        return ""
    return f" (process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')})"
