"""Check whether honed works on this machine, what the device is good at, and what to fix.

honed doctor
honed doctor --json

The exit status is 1 if honed cannot work, else 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from honed import __version__
from honed.quantities import counted

if TYPE_CHECKING:
    from honed.cli.doctor.facts import Device, Facts
    from honed.cli.doctor.rules import Finding

CANNOT_WORK = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(args: argparse.Namespace, command: str) -> int:
    """Prints the facts, and what to do about them."""
    from honed.cli.doctor.facts import gather
    from honed.cli.doctor.rules import findings

    facts = gather()
    found = findings(facts)
    print(as_json(facts, found) if args.json else "\n".join(as_text(facts, found)))
    return CANNOT_WORK if any(finding.stops for finding in found) else 0


def as_json(facts: Facts, found: list[Finding]) -> str:
    """All facts and findings as JSON."""
    import dataclasses
    import json

    works = not any(finding.stops for finding in found)
    findings = [dataclasses.asdict(finding) for finding in found]
    return json.dumps({"works": works, **dataclasses.asdict(facts), "findings": findings}, indent=1)


def as_text(facts: Facts, found: list[Finding]) -> Iterator[str]:
    """The printed lines: facts first, fixes last."""
    there = [f"{package.name} {package.version}" for package in facts.packages if package.version]
    yield f"honed {__version__}   Python {facts.python} on {facts.system}"
    yield from _wrapped("packages", "  ".join(there))
    yield from _absent(facts)
    yield from _device_lines(facts.device)
    yield f"{'processor':10} {counted(facts.cores, 'core')} to use{_gb_of(facts.memory_free_gb, facts.memory_gb)}"
    for place in facts.places:
        state = place.fault or (f"{place.free_gb:,.1f} GB free" if place.free_gb is not None else "")
        yield f"{place.role:10} {place.path}   {state}"
    in_cache = "in the cache" if not facts.default_model_fault else "fetched by pip when it is first used"
    yield f"{'model':10} smollm2-135m-instruct (the default): {in_cache}"
    yield ""
    for finding in found:
        yield f"{'STOPS' if finding.stops else 'note'}  {finding.what}\n       fix: {finding.fix}"
    yield "honed cannot work until that is fixed." if any(f.stops for f in found) else "honed can work here."


def _absent(facts: Facts) -> Iterator[str]:
    from honed.cli.doctor.rules import WHAT_FOR

    extras = {package.extra for package in facts.packages if package.extra and package.version is None}
    for extra in sorted(extras):
        names = ", ".join(p.name for p in facts.packages if p.extra == extra and p.version is None)
        yield f"{'absent':10} {names}, for {WHAT_FOR.get(extra, extra)}: pip install 'honed[{extra}]'"


def _device_lines(device: Device | None) -> Iterator[str]:
    if device is None:
        return
    threads = f", {counted(device.threads, 'thread')}" if device.kind == "cpu" else ""
    yield f"{'device':10} {device.kind.upper()} {device.name}{threads}{_gb_of(device.memory_free_gb, device.memory_gb)}"
    speeds = [f"{kind} {tflops:.3g} TFLOP/s" for kind, tflops in device.tflops.items()]
    yield f"{'measured':10} {'  '.join([*speeds, f'copies {device.copy_gb_per_second:.3g} GB/s'])}"


def _gb_of(free: float | None, total: float | None) -> str:
    return "" if free is None or total is None else f", {free:.1f} of {total:.1f} GB memory free"


def _wrapped(name: str, text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 100, initial_indent=f"{name:10} ", subsequent_indent=" " * 11)
