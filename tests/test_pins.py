"""The dependency audit that needs no network: every package is held to one version, and those are the ones installed.

Known weaknesses are looked up by `pip-audit -r constraints.txt --no-deps`, which asks a server; see docs/guarantees.md.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def pins() -> list[Requirement]:
    """Those that hold for this Python."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [pin for pin in found if pin.marker is None or pin.marker.evaluate()]


def test_each_is_one_exact_version() -> None:
    names = [canonicalize_name(pin.name) for pin in pins()]
    assert len(names) == len(set(names))
    assert [str(pin) for pin in pins() if not re.fullmatch(r"==[^,*]+", str(pin.specifier)) or pin.url] == []


def test_all_that_honed_needs_is_held_to_what_it_permits() -> None:
    try:
        needs = [Requirement(line) for line in requires("honed") or ()]
    except PackageNotFoundError:
        pytest.skip("honed runs from its source and is not installed: pip install -e .")
    held = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins()}
    run_time = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert run_time
    for need in run_time:
        assert need.specifier.contains(held[canonicalize_name(need.name)]), str(need)


@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv" and not os.environ.get("HONED_PINS"),
    reason="only the environment that `make` installs is held to the constraints; HONED_PINS=1 checks this one",
)
def test_what_is_installed_is_what_is_held() -> None:
    other = {}
    for pin in pins():
        try:
            found = version(pin.name)
        except PackageNotFoundError:  # a constraint installs nothing by itself
            continue
        if not pin.specifier.contains(found.partition("+")[0], prereleases=True):
            other[pin.name] = found
    assert other == {}
