"""A table of rules over a machine's `Facts`: what keeps honed from working well, or at all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from honed.cli.doctor.facts import Facts, Place

ROOM_GB = 2.0  # the default model, its download and one small run
SHARED_MEMORY_GB = 0.25  # Docker's default is 0.064
FREE_SHARE = 0.5

WHAT_FOR = {"quant": "training adapters on quantised models", "vision": "rows with images"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something to fix. `stops`: honed cannot work before that."""

    what: str
    fix: str
    stops: bool = False


def findings(facts: Facts) -> list[Finding]:
    """All findings, those that stop honed first."""
    found = [finding for rule in RULES for finding in rule(facts)]
    return sorted(found, key=lambda finding: not finding.stops)


def _packages(facts: Facts) -> Iterator[Finding]:
    if not facts.packages:
        yield Finding(
            what="honed runs from its source and is not installed, so its requirements are not checked.",
            fix=f"{_PIP} -e . (in the folder of its pyproject.toml)",
        )
    for package in facts.packages:
        there = f"{package.version} is installed" if package.version else "it is absent"
        if package.fits or (package.extra and package.version is None):
            continue
        yield Finding(
            what=f"honed needs {package.name}{package.wanted}, and {there}.",
            fix=f"{_PIP} '{package.name}{package.wanted}'",
            stops=not package.extra,
        )


def _imports(facts: Facts) -> Iterator[Finding]:
    if facts.import_fault:
        yield Finding(what=f"{facts.import_fault}.", fix=f"{_PIP} --force-reinstall honed", stops=True)


def _places(facts: Facts) -> Iterator[Finding]:
    for place in facts.places:
        if place.fault:
            yield _closed(place)
        elif place.free_gb is not None and place.free_gb < ROOM_GB:
            yield Finding(
                what=f"{place.free_gb:.2f} GB are free at {place.path} ({place.role}).",
                fix=f"free some space, or {_ELSEWHERE[place.role]}",
            )


def _closed(place: Place) -> Finding:
    return Finding(
        what=f"The {place.role} folder {place.path} cannot be written: {place.fault}.",
        fix=f"permit writing there, or {_ELSEWHERE[place.role]}",
        stops=place.role == "cache",
    )


def _card(facts: Facts) -> Iterator[Finding]:
    device = facts.device
    if device is None:
        return
    if device.cuda_fault:
        yield Finding(
            what=f"There is an NVIDIA driver, and torch computes on the {device.kind.upper()}: {device.cuda_fault}.",
            fix="install a torch for your driver (https://pytorch.org/get-started/locally), or a newer driver",
        )
    if device.kind == "cuda" and not device.has_bfloat16:
        yield Finding(
            what=f"{device.name} has no bfloat16; honed trains in float32, which is slow on it.",
            fix="add fp16=true to the recipe",
        )
    free, total = device.memory_free_gb, device.memory_gb
    if free is not None and total is not None and free < FREE_SHARE * total:
        yield Finding(
            what=f"Others hold {total - free:.1f} of {device.name}'s {total:.1f} GB.",
            fix="see who with nvidia-smi, or choose another card with CUDA_VISIBLE_DEVICES=1",
        )


def _cpu(facts: Facts) -> Iterator[Finding]:
    device = facts.device
    if device is not None and device.threads > facts.cores:
        yield Finding(
            what=f"torch takes {device.threads} threads, and this process may use {facts.cores} cores: they wait "
            "for each other.",
            fix=f"export OMP_NUM_THREADS={facts.cores}",
        )
    if device is not None and device.kind == "cpu" and device.threads < facts.cores:
        yield Finding(
            what=f"torch takes {device.threads} of {facts.cores} cores.",
            fix=f"export OMP_NUM_THREADS={facts.cores}",
        )
    if facts.settings.get("TOKENIZERS_PARALLELISM", "").lower() in {"0", "false", "off", "no"}:
        yield Finding(
            what="TOKENIZERS_PARALLELISM is off: texts are encoded on one core.", fix="unset TOKENIZERS_PARALLELISM"
        )


def _system(facts: Facts) -> Iterator[Finding]:
    if facts.encoding.lower().replace("-", "").replace("_", "") != "utf8":
        yield Finding(
            what=f"Output is written as {facts.encoding}, which lacks most scripts and symbols.",
            fix="set PYTHONUTF8=1" if sys.platform == "win32" else "export PYTHONUTF8=1 LC_ALL=C.UTF-8",
        )
    if not facts.can_fork:
        yield Finding(
            what="Processes cannot be forked here: rows are prepared by one process.",
            fix="nothing to do; with dataloader_num_workers, put a script's code below `if __name__ == '__main__':`",
        )
    if facts.shared_memory_gb is not None and facts.shared_memory_gb < SHARED_MEMORY_GB:
        yield Finding(
            what=f"/dev/shm has {facts.shared_memory_gb:.2f} GB free, too few for dataloader_num_workers.",
            fix="start the container with --shm-size=2g, or leave dataloader_num_workers at 0",
        )
    if facts.memory_free_gb is not None and facts.memory_free_gb < ROOM_GB:
        yield Finding(what=f"{facts.memory_free_gb:.1f} GB of memory are free.", fix="end other programs")


_PIP = "pip install"
_ELSEWHERE = {
    "cache": "set HONED_CACHE to another folder",
    "output": "name another folder with output=FOLDER",
}
RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (_packages, _imports, _places, _card, _cpu, _system)
