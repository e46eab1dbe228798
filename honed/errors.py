"""The exceptions that honed raises; every message says what was found and how to fix it.

HonedError                 base; the command line prints it and exits with status 2
|-- DataError              a file, a row or a whole dataset that cannot be used
|-- TemplateError          a chat template whose spans cannot be verified
|-- RecipeError            an unknown key, a wrong value, options that are mutually exclusive
|-- ModelError             a model or tokenizer that cannot be found, loaded or trained
|-- RunError               an output folder that cannot be written, or is in use
`-- MissingExtraError      an optional dependency is missing; names the exact pip line

DataError, TemplateError and RecipeError are ValueErrors as well, which is what other trainers raise for such input.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}
UNWRITABLE = {errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG}


class HonedError(Exception):
    """Base of all errors that a user can fix. `str(error)` is the text they read.

    Args:
        problem: what was found, and where (file, line, row, key).
        fix: what to do about it; printed on its own line.
    """

    def __init__(self, problem: str, *, fix: str = "") -> None:
        self.problem = problem
        self.fix = fix
        super().__init__(f"{problem}\n  fix: {fix}" if fix else problem)


class DataError(HonedError, ValueError):
    """A file, a row or a whole dataset that cannot be used."""


class TemplateError(HonedError, ValueError):
    """A chat template whose spans cannot be verified."""


class RecipeError(HonedError, ValueError):
    """An unknown key, a wrong value, or options that are mutually exclusive."""


class ModelError(HonedError):
    """A model or tokenizer that cannot be found, loaded or trained."""


class RunError(HonedError):
    """An output folder that cannot be written, or is in use."""


class MissingExtraError(HonedError):
    """An optional dependency is missing.

    Args:
        package: the import that failed.
        extra: the extra of honed that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs the package {package!r}, which is not installed.", fix=f"pip install 'honed[{extra}]'"
        )


@contextmanager
def storage_errors(
    place: Path, *, elsewhere: str = "name another folder with output=FOLDER", every: bool = False
) -> Iterator[None]:
    """Turns OS errors about a disk or a permission into errors that say what to do.

    Args:
        place: the path that is written.
        elsewhere: how to choose another path.
        every: convert every OSError in the block, not only those about a full disk or a permission.

    Raises:
        RunError: instead of OSError.
    """
    try:
        yield
    except Exception as error:
        number = _errno_of(error)
        if number in FULL:
            raise RunError(
                f"No space is left on the disk of {place}.", fix=f"free some space and run it again, or {elsewhere}"
            ) from None
        refused = isinstance(error, (PermissionError, NotADirectoryError, FileExistsError))
        if refused or number in UNWRITABLE or (every and isinstance(error, OSError)):
            reason = getattr(error, "strerror", None) or (os.strerror(number) if number else error)
            raise RunError(f"{place} cannot be written: {reason}.", fix=elsewhere) from None
        raise


def _errno_of(error: Exception) -> int:
    """The errno of an error, 0 if unknown; safetensors and torch quote it in exceptions of their own."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if os.strerror(errno.ENOSPC) in str(error):
        return errno.ENOSPC
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    return int(quoted[1]) if quoted else 0


def first_line(error: BaseException) -> str:
    """The error's type and the first non-empty line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
