"""Kernels that were not measured on a GPU are tried on it before a training run relies on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch


def succeeds(trial: Callable[[], None], *, otherwise: str) -> bool:
    """Whether the trial ends without an error; if not, warns once for each call.

    Args:
        trial: runs the kernel and raises an error if it gives other results.
        otherwise: what does not work, and what is done without it; the error's first line is added.

    Raises:
        torch.OutOfMemoryError: memory did not suffice, which says nothing about the kernel.
    """
    try:
        trial()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and drivers may raise anything
        first = str(error).strip().splitlines()[:1]
        warnings.warn(f"{otherwise}: {first}", RuntimeWarning, stacklevel=3)
        return False
    return True
