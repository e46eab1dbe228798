"""What the sweep found of models that see, as the tables of docs/vision.md."""

from __future__ import annotations

import textwrap
from typing import Any

from table import ALLOWED, SAME_LOGITS, fault, head, is_error, made_of, merged_page, wrong

SEEING, SPEAKING = ("batch", "one by one", "without images"), ("batch", "packed", "padded")


def written(page: str, found: dict[str, Any]) -> str:
    """The page with the tables between its marks."""
    return merged_page(page, tables(found))


def tables(found: dict[str, Any]) -> str:
    """The types that were made and tried, what went wrong, and the names of the others."""
    columns = ("type", "rows with images", "rows of text alone", "LoRA merged", "generation", "gradients")
    made = made_of(found)
    lines = head(found, columns, [row(kind, result) for kind, result in made.items()])
    lines += wrong({kind: faults(result) for kind, result in made.items()})
    if others := ", ".join(kind for kind in found if kind not in made):
        said = f"No tiny model was made by this script, which says nothing about the types themselves: {others}."
        lines += ["", *textwrap.wrap(said, 120, break_on_hyphens=False)]
    return "\n".join(lines)


def row(kind: str, result: dict[str, Any]) -> str:
    """One type."""
    speaking, generation = result["text"], result["generation"]
    flat = outcome(speaking) if isinstance(speaking, str) else "flat" if speaking.get("flat") else "padded"
    engine = (
        outcome(generation) if isinstance(generation, str) else "transformers'" if generation["note"] else "honed's"
    )
    return f"| {kind} | {seeing(result)} | {flat} | {merging(result)} | {engine} | {worst(result)} |"


def outcome(part: str) -> str:
    """One word for what did not go; the list below the table has the errors."""
    return "error" if is_error(part) else "refused"


def seeing(result: dict[str, Any]) -> str:
    """Whether rows with images are trained, or why they are refused."""
    batch = result["seeing"] if isinstance(result["seeing"], str) else result["seeing"]["batch"]
    return outcome(batch) if isinstance(batch, str) else "yes"


def merging(result: dict[str, Any]) -> str:
    adapted = result["adapted"]
    export = adapted if isinstance(adapted, str) else adapted["export"]
    return outcome(export) if isinstance(export, str) else "yes"


def worst(result: dict[str, Any]) -> str:
    """The largest difference of a gradient in the model's own format, of all ways that are not refused."""
    pairs = ((result["seeing"], SEEING), (result["text"], SPEAKING))
    found = [
        part[way] for part, ways in pairs if isinstance(part, dict) for way in ways if isinstance(part[way], float)
    ]
    return f"{max(found):.0e} {result['seeing']['dtype']}" if found else "-"


def faults(result: dict[str, Any]) -> list[str]:
    """What is wrong, beside refusals of honed's own."""
    if result["made"] is not True:
        return []
    found = [f"{name}: {part}" for name, part in result.items() if is_error(part)]
    allowed = ALLOWED[result["seeing"]["dtype"]] if isinstance(result["seeing"], dict) else 0.0
    for name, ways in (("seeing", SEEING), ("text", SPEAKING)):
        if isinstance(result[name], dict):
            found += [reason for way in ways for reason in fault(f"{name}, {way}", result[name][way], allowed)]
    if isinstance(result["adapted"], dict):
        found += fault("LoRA", result["adapted"]["gradients"], ALLOWED["float32"])
        found += fault("merged", result["adapted"]["export"], SAME_LOGITS)
    if isinstance(result["generation"], dict) and not result["generation"]["same"]:
        found.append("generated answers differ")
    return found + fault("saved", result["kept"], SAME_LOGITS)
