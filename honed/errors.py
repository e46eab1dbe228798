"""The exceptions that honed raises; every message names what was found and how to mend it.

HonedError                 base; the command line prints it and exits with status 2
|-- DataError              a file, a row or a whole data set that cannot be used
|-- TemplateError          a chat template whose spans cannot be verified
|-- RecipeError            an unknown key, a wrong value, options that exclude each other
|-- ModelError             a model or tokenizer that cannot be found, loaded or trained
|-- RunError               an output folder that cannot be written, or is in use
`-- MissingExtraError      an optional dependency is absent; names the exact pip line
"""

from __future__ import annotations


class HonedError(Exception):
    """Base of all errors that a user can mend. `str(error)` is what they read.

    Args:
        problem: what was found, and where (file, line, row, key).
        fix: what to do about it; printed on its own line.
    """

    def __init__(self, problem: str, *, fix: str = "") -> None:
        self.problem = problem
        self.fix = fix
        super().__init__(f"{problem}\n  fix: {fix}" if fix else problem)


class DataError(HonedError):
    """A file, a row or a whole data set that cannot be used."""


class TemplateError(HonedError):
    """A chat template whose spans cannot be verified."""


class RecipeError(HonedError):
    """An unknown key, a wrong value, or options that exclude each other."""


class ModelError(HonedError):
    """A model or tokenizer that cannot be found, loaded or trained."""


class RunError(HonedError):
    """An output folder that cannot be written, or is in use."""


class MissingExtraError(HonedError):
    """An optional dependency is absent.

    Args:
        package: the import that failed.
        extra: the extra of honed that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs the package {package!r}, which is not installed.", fix=f"pip install 'honed[{extra}]'"
        )
