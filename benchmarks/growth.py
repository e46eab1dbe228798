"""How cost grows with size: time and memory of a step, preparation, start-up; each against the form of the theory.

    python benchmarks/growth.py [--small] [--out benchmarks/results/growth-cpu-1thread-DATE.json]
    python benchmarks/plot_growth.py benchmarks/results/growth-cpu-1thread-DATE.json

Every point is measured in a separate process, on one CPU thread. A step is a forward and backward pass and AdamW's
update, in float32, on a flat row, of a one-layer Llama with random weights. Seconds are processor time, for steps the
minimum of the repeats. Memory is how much the peak of two steps (in the second AdamW has its moments) exceeds what the
process held before, as Linux counts it. With `--only`, the other curves in the file of `--out` stay unchanged.

The form has the terms that theory predicts (a + b x, a + b x^2, ...). Its non-negative factors are fitted to the points
by least squares of the relative error. The largest distance of a point from the fit is printed and recorded: it shows a
cost that grows differently than it should.

`--small` uses sizes that take about two minutes, to check that everything works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).resolve().parent.parent
HIDDEN, DOCUMENT, REPEATS = 64, 512, 2
TILE_ROWS = 128  # minimum tokens per tile of logits in the head; see honed/ops/linear_cross_entropy.py


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One cost against one size: `powers` are the powers of x in the theoretical form."""

    name: str
    title: str
    x: str
    unit: str
    powers: tuple[int, ...]
    theory: str
    sizes: tuple[int, ...]
    small: tuple[int, ...]


LENGTHS, SHORT = (1024, 2048, 4096, 8192, 16384, 32768), (512, 1024, 2048)
CURVES = (
    Curve(name="step-one-document", title="Step, one document", x="tokens in the row", unit="s", powers=(0, 1, 2),
          theory="attention is quadratic in a document's length, all else linear", sizes=LENGTHS, small=SHORT),
    Curve(name="step-documents", title=f"Step, documents of {DOCUMENT}", x="tokens in the row", unit="s", powers=(0, 1),
          theory="documents do not see each other, so all is linear", sizes=LENGTHS, small=SHORT),
    Curve(name="memory-vocabulary", title="Memory of a step", x="vocabulary", unit="MB", powers=(0, 1),
          theory=f"each entry has a gradient, two moments and at most {TILE_ROWS} logits at a time",
          sizes=(8192, 16384, 32768, 65536, 131072, 262144), small=(8192, 16384, 32768)),
    Curve(name="memory-length", title="Memory of a step", x="tokens of one document", unit="MB", powers=(0, 1),
          theory="activations are linear in length; no scores of all pairs are kept", sizes=LENGTHS, small=SHORT),
    Curve(name="memory-batch", title="Memory of a step", x=f"documents of {DOCUMENT}", unit="MB", powers=(0, 1),
          theory="activations are linear in the number of tokens", sizes=(2, 4, 8, 16, 32, 64), small=(1, 2, 4)),
    Curve(name="preparation", title="Preparation", x="rows", unit="s", powers=(0, 1),
          theory="every row is read, rendered and encoded once", sizes=(1000, 10_000, 100_000, 1_000_000),
          small=(100, 1000, 5000)),
    Curve(name="startup-cold", title="Command to first step, nothing cached", x="rows", unit="s", powers=(0, 1),
          theory="imports cost the same, preparation is linear", sizes=(100, 1000, 10_000, 100_000), small=(100, 1000)),
    Curve(name="startup-warm", title="Command to first step, data cached", x="rows", unit="s", powers=(0, 1),
          theory="imports cost the same, the files' bytes are hashed", sizes=(100, 1000, 10_000, 100_000),
          small=(100, 1000)),
)  # fmt: skip


def main() -> None:
    args = arguments()
    if args.one:
        print(json.dumps(MEASURES[args.one](args.size)))
        return
    results = {} if args.out is None else kept(Path(args.out), small=args.small)
    for curve in CURVES:
        if any(part in curve.name for part in args.only):
            results[curve.name] = measured(curve, curve.small if args.small else curve.sizes)
            print(describe(results[curve.name]), flush=True)
    if args.out:
        record: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine(), "versions": versions()}
        record |= {"small": args.small, "results": [results[c.name] for c in CURVES if c.name in results]}
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def kept(file: Path, *, small: bool) -> dict[str, dict[str, Any]]:
    """The curves measured before, by name; none from another day, other versions or another kind of sizes."""
    if not file.is_file():
        return {}
    record = json.loads(file.read_text(encoding="utf-8"))
    now = {"date": date.today().isoformat(), "machine": machine(), "versions": versions(), "small": small}
    same = all(record.get(key) == value for key, value in now.items())
    return {result["name"]: result for result in record["results"]} if same else {}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", "--quick", action="store_true", help="small sizes, to see whether all works")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[""], help="curves whose names hold one of these")
    parser.add_argument("--out")
    parser.add_argument("--one", choices=[curve.name for curve in CURVES], help="one point, in this process")
    parser.add_argument("--size", type=int)
    return parser.parse_args()


def measured(curve: Curve, sizes: tuple[int, ...]) -> dict[str, Any]:
    """The curve's points, the factors of the theoretical form, and the largest relative distance from it."""
    points = [(size, point(curve.name, size)) for size in sizes]
    factors = fitted(points, curve.powers)
    worst = max(abs(value / line(factors, curve.powers, size) - 1) for size, value in points)
    described = {key: value for key, value in asdict(curve).items() if key not in {"sizes", "small"}}
    return {**described, "points": points, "factors": factors, "worst": round(worst, 3)}


def point(name: str, size: int) -> float:
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, "--size", str(size)]
    environment = {**os.environ, **THREADS, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if name.startswith("memory"):  # return freed blocks at once, so that later ones do not reuse them unseen
        environment["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} at {size} failed:\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def line(factors: list[float], powers: tuple[int, ...], size: float) -> float:
    return sum(factor * size**power for factor, power in zip(factors, powers, strict=True))


def fitted(points: list[tuple[int, float]], powers: tuple[int, ...]) -> list[float]:
    """Factors >= 0 with the smallest sum of squared relative errors; every subset of the few terms is tried."""
    import numpy as np

    x, y = np.array(points, dtype=float).T
    best, least = np.zeros(len(powers)), np.inf
    for count in range(1, len(powers) + 1):
        for kept in combinations(range(len(powers)), count):
            terms = np.stack([x ** powers[n] / y for n in kept], axis=1)
            scale = terms.max(axis=0)
            found = np.linalg.lstsq(terms / scale, np.ones_like(y), rcond=None)[0] / scale
            error = ((terms @ found - 1) ** 2).sum()
            if (found >= 0).all() and error < least:
                best, least = np.zeros(len(powers)), error
                best[list(kept)] = found
    return [float(f"{factor:.4g}") for factor in best]


def step_of(lengths: list[int], vocabulary: int = 1024, hidden: int = HIDDEN) -> Callable[[], None]:
    """A whole optimizer step on one flat row of documents of these lengths."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from honed.data.batch.collate import FlatCollator
    from honed.data.batch.table import PackedRow
    from honed.loss.objective import total_weight
    from honed.train.forward import seams

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=1 << 16, **shape)
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    found = seams.find_seams(model)
    if not found.flat:
        raise SystemExit(f"the model takes no flat rows: {found.notes}")
    draw = np.random.default_rng(0)
    ids = draw.integers(3, vocabulary, sum(lengths), dtype=np.int32)
    weights = np.ones(len(ids), dtype=np.float32)
    weights[np.cumsum([0, *lengths[:-1]])] = 0  # nothing predicts a document's first token
    row = PackedRow(input_ids=ids, weights=weights, lengths=tuple(lengths))

    def step() -> None:
        batch = FlatCollator()([row])
        with seams.opened(model, found) as head:
            total = total_weight(batch["labels"], batch.get("loss_weights"))
            scores, _ = seams.token_scores(model, batch, head, total=total)
            scores.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_of(lengths: list[int]) -> float:
    """Minimum processor time of the repeats, which take at least a second in total, after a warm-up step."""
    step = step_of(lengths)
    taken: list[float] = []
    step()
    while len(taken) < REPEATS or sum(taken) < 1:
        began = time.process_time()
        step()
        taken.append(time.process_time() - began)
    return round(min(taken), 4)


def megabytes_of(lengths: list[int], vocabulary: int = 4096) -> float:
    """How much the peak resident memory of two steps exceeds that before them, which includes the model.

    With a vocabulary of 4096, the head's tile of logits has its full size from 1024 tokens on, and is a constant.
    """
    step = step_of(lengths, vocabulary, hidden=2 * HIDDEN)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = resident("VmRSS")
    step()
    step()
    return round(resident("VmHWM") - before, 1)


def resident(key: str) -> float:
    """MB, as Linux counts them: VmRSS is the current value, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def preparation(rows: int) -> float:
    """Processor seconds from file to training tokens, for the packaged starter set, repeated."""
    from honed.data.prepare.options import PrepareOptions
    from honed.data.prepare.prepare import prepare
    from honed.model.load.load import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    with tempfile.TemporaryDirectory() as folder:
        file = repeated(rows, Path(folder))
        began = time.process_time()
        prepare(str(file), tokenizer, PrepareOptions())
        return round(time.process_time() - began, 3)


def startup(rows: int, *, warm: bool) -> float:
    """Processor seconds from the command to the end of the first step, with the plain engine; see startup.py."""
    import startup as command

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repeated(rows, folder)
        command.save_model(folder / "model")
        if warm:
            command.start("plain", folder)
        return round(command.start("plain", folder)["cpu_seconds"], 2)


def repeated(rows: int, folder: Path) -> Path:
    lines = (ROOT / "honed/data/starter/train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    file = folder / "rows.jsonl"
    file.write_text("".join((lines * (rows // len(lines) + 1))[:rows]), encoding="utf-8")
    return file


MEASURES: dict[str, Callable[[int], float]] = {
    "step-one-document": lambda size: seconds_of([size]),
    "step-documents": lambda size: seconds_of([DOCUMENT] * (size // DOCUMENT)),
    "memory-vocabulary": lambda size: megabytes_of([TILE_ROWS], size),
    "memory-length": lambda size: megabytes_of([size]),
    "memory-batch": lambda size: megabytes_of([DOCUMENT] * size),
    "preparation": preparation,
    "startup-cold": lambda size: startup(size, warm=False),
    "startup-warm": lambda size: startup(size, warm=True),
}


def describe(result: dict[str, Any]) -> str:
    head = f"{result['title']} ({result['unit']}) against {result['x']}: {result['theory']}"
    rows = [
        f"  {size:>10,} {value:>10.3f}   theory's form {line(result['factors'], result['powers'], size):>10.3f}"
        for size, value in result["points"]
    ]
    return "\n".join([head, *rows, f"  the worst point lies {result['worst']:.1%} from the line"])


def machine() -> dict[str, Any]:
    return {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1, "system": platform.system()}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("honed", "torch", "transformers")}


if __name__ == "__main__":
    main()
