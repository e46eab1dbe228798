"""Names of TRL and Unsloth: imported, or refused with what takes their place, and listed in docs/migrating.md."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

import honed
from honed.train.options.not_here import NOT_HERE

MIGRATING = Path(__file__).resolve().parents[3] / "docs" / "migrating.md"


@pytest.mark.parametrize("name", NOT_HERE)
def test_an_import_says_what_takes_its_place(name: str) -> None:
    with pytest.raises(ImportError) as caught:
        exec(f"from honed import {name}", {})
    assert f"'{name}'" in str(caught.value) and NOT_HERE[name] in str(caught.value)
    assert name not in honed.__all__
    assert f"`{name}`" in MIGRATING.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", honed.__all__)
def test_public_names_are_there(name: str) -> None:
    namespace: dict[str, object] = {}
    exec(f"from honed import {name}", namespace)
    assert callable(namespace[name])


def test_no_name_of_trl_is_forgotten() -> None:
    """Those of TRL's own __init__, read without importing it."""
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl is not installed")
    structure = next(
        node.value
        for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_import_structure"
    )
    names = {name for names in ast.literal_eval(structure).values() for name in names}
    assert names <= {*NOT_HERE, *honed.__all__}


def test_any_other_name_is_an_attribute_error() -> None:
    assert not hasattr(honed, "no_such_name")
    with pytest.raises(ImportError, match="cannot import name 'no_such_name'"):
        exec("from honed import no_such_name", {})
