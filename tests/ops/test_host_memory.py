"""Host memory that is kept between steps, seen in the process's own numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from honed.ops import host_memory
from honed.ops.host_memory import kept_host_memory

# Frees 200 blocks of 1 MB, four times; prints the page faults of the last three times, and the memory after the block.
PROGRAM = """
import psutil, resource
from contextlib import nullcontext
from honed.ops.host_memory import kept_host_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    blocks = [bytearray(b"1") * 1_000_000 for _ in range(200)]

before = psutil.Process().memory_info().rss
with {block}:
    step()
    first = faults()
    for _ in range(3):
        step()
    print(faults() - first)
print((psutil.Process().memory_info().rss - before) // 1_000_000)
"""


@pytest.mark.skipif(host_memory._glibc() is None, reason="this C library is not glibc")
def test_freed_memory_is_used_again_and_given_back_in_the_end() -> None:
    faults, left = run("kept_host_memory(), kept_host_memory()")
    faults_before, _ = run("nullcontext()")
    assert faults < faults_before / 10
    assert left < 50


def run(block: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(block=block)], capture_output=True, text=True, check=True
    )
    return [int(line) for line in done.stdout.split()]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_glibc", lambda: None)
    with kept_host_memory() as kept:
        assert not kept
