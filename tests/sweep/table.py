"""What the sweep found, as the tables of docs/models.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

WAYS = ("batch", "batch, no recomputing", "one by one", "packed", "padded", "float32")
# Largest relative difference of a gradient. Models in float64 have parts that compute in float32 (norms, experts).
ALLOWED = {"float64": 1e-5, "float32": 1e-4}
SAME_LOGITS = 1e-4
ONE_ROW = "rows of different length cannot share a batch"
BEGIN, END = "<!-- sweep -->", "<!-- /sweep -->"


def written(page: str, found: dict[str, Any]) -> str:
    """The page with the tables between its marks."""
    return merged_page(page, tables(found))


def merged_page(page: str, made: str) -> str:
    """The page with other tables between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def tables(found: dict[str, Any]) -> str:
    """All types that were made, what went wrong, and the types that were not made."""
    columns = ("type", "rows of a batch", "LM head", "layers without LoRA", "generation", "plan", "gradients")
    made = made_of(found)
    lines = head(found, columns, [row(kind, result) for kind, result in made.items()])
    lines += wrong({kind: faults(result) for kind, result in made.items()})
    others = [f"| {kind} | {short(result['made'])} |" for kind, result in found.items() if kind not in made]
    if others:
        lines += ["", "Not tested (no tiny model could be built):", "", "| type | why |", "| --- | --- |", *others]
    return "\n".join(lines)


def made_of(found: dict[str, Any]) -> dict[str, Any]:
    """The types of which a tiny model was made."""
    return {kind: result for kind, result in found.items() if result["made"] is True}


def head(found: dict[str, Any], columns: Sequence[str], rows: Sequence[str]) -> list[str]:
    """When and with what it was run, and the table, as lines."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch", "peft"))
    day = datetime.now(timezone.utc).date().isoformat()
    said = f"Run on {day} with {versions}: {len(rows)} of {len(found)} types were built and tested."
    return [said, "", f"| {' | '.join(columns)} |", "| " + "--- | " * (len(columns) - 1) + "--- |", *rows]


def wrong(faults_by_kind: dict[str, list[str]]) -> list[str]:
    """The types with faults, as lines; none where there are none."""
    told = [f"- {kind}: {short('; '.join(reasons), 220)}" for kind, reasons in faults_by_kind.items() if reasons]
    return ["", "Failures:", "", *told] if told else []


def row(kind: str, result: dict[str, Any]) -> str:
    """One type."""
    cells = (kind, rows_of(result), head_of(result), lora_of(result), engine_of(result), plan_of(result), worst(result))
    return f"| {' | '.join(cells)} |"


def rows_of(result: dict[str, Any]) -> str:
    training = result["training"]
    if isinstance(training, str):
        return short(training)
    if ONE_ROW in str(training["batch"]):
        return "one by one"
    return "flat" if training.get("flat") else "padded"


def head_of(result: dict[str, Any]) -> str:
    scoring = result["training"].get("scoring") if isinstance(result["training"], dict) else None
    return {True: "trained tokens", False: "whole logits"}.get(scoring, "-")


def lora_of(result: dict[str, Any]) -> str:
    """The matrices without an adapter, and what else is to be known."""
    adapters = result["adapters"]
    if isinstance(adapters, str):
        return short(adapters)
    told = [".".join(name.removesuffix(".weight").split(".")[-2:]) for name in adapters["missed"] if no_table(name)]
    export = adapters["export"]
    refused = ["(export refused)"] if isinstance(export, str) and export.startswith("refused") else []
    return " ".join([", ".join(sorted(set(told))), *refused]).strip() or "-"


def no_table(name: str) -> bool:
    """Positions and convolutions are left out of the page; checks.py notes them."""
    return not re.search(r"embed|wpe|conv|position|A_log|time_mix|\.D$", name)


def engine_of(result: dict[str, Any]) -> str:
    generation = result["generation"]
    if isinstance(generation, str):
        return short(generation)
    return "transformers'" if generation["note"] else "honed's"


def plan_of(result: dict[str, Any]) -> str:
    planning = result["planning"]
    return short(planning) if isinstance(planning, str) else "exact" if planning["counted"] else "inexact"


def worst(result: dict[str, Any]) -> str:
    """The largest difference of all ways in the model's own format, and in float32."""
    training = result["training"]
    if isinstance(training, str):
        return "-"
    own = [training[way] for way in WAYS[:-1] if isinstance(training[way], float)]
    return f"{max(own):.0e} {training['dtype']}" if own else "-"


def faults(result: dict[str, Any]) -> list[str]:
    """What is wrong, beside refusals of honed's own."""
    if result["made"] is not True:
        return []
    found = [f"{name}: {part}" for name, part in result.items() if is_error(part)]
    training, adapters = result["training"], result["adapters"]
    if isinstance(training, dict):
        for way in WAYS:
            allowed = ALLOWED["float32" if way == "float32" else training["dtype"]]
            found += fault(f"training, {way}", training[way], allowed)
        found += fault("the router's balance", training["with the router's balance"], 1)
    if isinstance(adapters, dict):
        found += fault("LoRA", adapters["gradients"], ALLOWED["float32"])
        found += fault("merged", adapters["export"], SAME_LOGITS)
    if isinstance(result["generation"], dict) and not result["generation"]["same"]:
        found.append("generated answers differ")
    if isinstance(result["planning"], dict) and not result["planning"]["counted"]:
        found.append(f"planned {result['planning']['of']}")
    return found + fault("saved", result["saved"], SAME_LOGITS)


def fault(name: str, value: Any, allowed: float) -> list[str]:
    """A list of one where it is wrong."""
    if isinstance(value, str):
        return [f"{name}: {value}"] if is_error(value) else []
    return [] if value <= allowed else [f"{name}: differs by {value:.1e}"]


def is_error(part: Any) -> bool:
    return isinstance(part, str) and part.startswith("error")


def short(text: str, length: int = 110) -> str:
    """An error or refusal in a table's cell."""
    line = " ".join(text.replace("|", "/").replace("<", "").replace(">", "").split())
    return line if len(line) <= length else f"{line[:length].rstrip()} ..."
