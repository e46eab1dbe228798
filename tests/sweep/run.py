"""Tries honed on a tiny model of every type that transformers' AutoModelForCausalLM knows, against plain transformers.

    python tests/sweep/run.py --page docs/models.md        all types, about 20 minutes on one core
    python tests/sweep/run.py llama gpt2 --out /tmp/sweep  some, with all that was found as JSON
    python tests/sweep/run.py --sight --page docs/vision.md  those of AutoModelForImageTextToText, on rows with images

Each process takes a few types, so that one that crashes or hangs is found and costs the others nothing. What is tried
stands in checks.py, how the models are made small in shapes.py, the page's table in table.py; for models that see, in
sight.py, sight_shapes.py and sight_table.py. Those need Pillow; without torchvision, timm, num2words and scipy fewer of
them can be made.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
AT_ONCE, SECONDS = 8, 120  # types of a process; time for each of them
QUIET = {
    **dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "OMP_NUM_THREADS", "HF_HUB_DISABLE_PROGRESS_BARS"), "1"),
    "CUDA_VISIBLE_DEVICES": "",
    "TRANSFORMERS_VERBOSITY": "critical",
    "PYTHONPATH": str(HERE.parents[1]),
}


def main() -> int:
    """Runs, prints and writes what was found; 1 where a type is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="model types; none for all")
    parser.add_argument("--sight", action="store_true", help="the image-text types")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--out", type=Path, help="a folder for a JSON file of each type")
    parser.add_argument("--page", type=Path, help="a page to write the tables into, between its marks")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, into --out
    args = parser.parse_args()
    if args.here:
        return try_here(args.kinds, args.out, sight=args.sight)
    sys.path.insert(0, str(HERE))
    table = importlib.import_module("sight_table" if args.sight else "table")

    with tempfile.TemporaryDirectory() as place:
        out = args.out or Path(place)
        out.mkdir(parents=True, exist_ok=True)
        found = sweep(args.kinds or all_kinds(sight=args.sight), out, args.jobs, sight=args.sight)
    if args.page is not None:
        args.page.write_text(table.written(args.page.read_text(encoding="utf-8"), found), encoding="utf-8")
    wrong = {kind: reasons for kind, result in found.items() if (reasons := table.faults(result))}
    for kind, reasons in wrong.items():
        sys.stdout.write(f"{kind}: {'; '.join(reasons)}\n")
    sys.stdout.write(f"{len(found)} types, {len(wrong)} with faults\n")
    return 1 if wrong else 0


def all_kinds(*, sight: bool = False) -> list[str]:
    """The types that AutoModelForCausalLM knows, or AutoModelForImageTextToText."""
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return sorted(names if sight else modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def sweep(kinds: Sequence[str], out: Path, jobs: int, *, sight: bool = False) -> dict[str, Any]:
    """What was found of each type, tried in processes of their own."""
    batches = [kinds[start : start + AT_ONCE] for start in range(0, len(kinds), AT_ONCE)]
    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(lambda batch: try_apart(batch, out, sight=sight), batches):
            pass
    return {kind: json.loads((out / f"{kind}.json").read_text(encoding="utf-8")) for kind in kinds}


def try_apart(kinds: Sequence[str], out: Path, *, sight: bool = False) -> None:
    """In another process; the type at which it dies is noted, and the rest goes on."""
    left = list(kinds)
    for kind in left:
        (out / f"{kind}.json").unlink(missing_ok=True)
    while left:
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            *left,
            "--here",
            "--out",
            str(out),
            *(["--sight"] if sight else []),
        ]
        try:
            ended = subprocess.run(
                command, env={**os.environ, **QUIET}, capture_output=True, timeout=SECONDS * len(left), check=False
            )
            why = f"the process ended with {ended.returncode}: {ended.stderr.decode(errors='replace')[-300:]}"
        except subprocess.TimeoutExpired:
            why = "it took too long"
        left = [kind for kind in left if not (out / f"{kind}.json").exists()]
        if left:
            write(out, left.pop(0), {"made": f"error: {why}"})


def try_here(kinds: Sequence[str], out: Path, *, sight: bool = False) -> int:
    """In this process."""
    import logging
    import warnings

    import torch
    from checks import check
    from sight import check_sight
    from transformers.utils import logging as library

    from honed.model.minimind.tokenizer import train_tokenizer

    warnings.simplefilter("ignore")
    library.set_verbosity(logging.CRITICAL)
    logging.getLogger("honed").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    tokenizer = train_tokenizer((f"why {number} fox" for number in range(50)), vocab_size=300)
    for kind in kinds:
        write(out, kind, check_sight(kind) if sight else check(kind, tokenizer))
    return 0


def write(out: Path, kind: str, found: dict[str, Any]) -> None:
    """As JSON; the file is there when it is whole."""
    aside = out / f".{kind}"
    aside.write_text(json.dumps(found, indent=1), encoding="utf-8")
    aside.replace(out / f"{kind}.json")


if __name__ == "__main__":
    sys.exit(main())
