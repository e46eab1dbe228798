r"""Optimizer steps of honed's SFTTrainer against trainers other than TRL, each in its own environment.

    python benchmarks/other_trainers.py --llamafactory PYTHON --axolotl PYTHON --litgpt PYTHON \
        --torchtune PYTHON --minimind CHECKOUT [--out FILE]

PYTHON is the interpreter of an environment with that trainer and the same torch; benchmarks/README.md says how to
create it. CHECKOUT is MiniMind's repository. Trainers that are not given are not measured.

All get the same weights (random), the same token ids and labels, in the same batches and order: float32, one thread,
AdamW, no clipping, a constant learning rate. Padding, attention, loss and the rest are each trainer's own.
LLaMA-Factory recomputes activations by default; it also runs without.

Sides run in turn, one process per run. Before a ratio is printed, the gradients of the first step are compared: the
norm of all of them, and of each tensor whose shape occurs on both sides (LitGPT has queries, keys and values in one
tensor). Time is processor time per step, after the first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from data_preparation import THREADS, machine, packaged_tokenizer
from training_step import CASES, Case, load, model_of, ratio, rows_of

PEERS = Path(__file__).parent / "peers.py"
SAME = 1e-3  # relative difference of norms of float32 gradients, computed by different code
TRAINERS = {  # option -> the case that is trained, and its sides besides honed
    "llamafactory": ("smollm2-135m", ("llamafactory", "llamafactory-no-checkpointing")),
    "axolotl": ("smollm2-135m", ("axolotl",)),
    "litgpt": ("smollm2-135m", ("litgpt",)),
    "torchtune": ("smollm2-135m", ("torchtune",)),
    "minimind": ("minimind", ("minimind",)),
}
SMOLLM2_POSITIONS, SMOLLM2_THETA = 8192, 100_000.0
Run = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A trainer to compare with."""

    name: str
    python: str
    job: dict[str, Any]

    @property
    def case(self) -> str:
        return TRAINERS[self.name][0]

    @property
    def sides(self) -> tuple[str, ...]:
        return TRAINERS[self.name][1]


def main() -> None:
    args = arguments()
    results = []
    for peer in asked_for(args):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder, peer, args.steps, args.batch)
            results.append(compare(folder, peer, args.repeats))
        print(describe(results[-1]), flush=True)
    if args.out:
        record = {"date": date.today().isoformat(), "machine": machine(), "results": results}
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamafactory", metavar="PYTHON")
    parser.add_argument("--axolotl", metavar="PYTHON")
    parser.add_argument("--litgpt", metavar="PYTHON")
    parser.add_argument("--torchtune", metavar="PYTHON")
    parser.add_argument("--minimind", metavar="CHECKOUT")
    parser.add_argument("--steps", type=int, default=3, help="of which the first is not timed")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out")
    return parser.parse_args()


def asked_for(args: argparse.Namespace) -> list[Peer]:
    """The requested trainers. MiniMind's script runs in this environment, because it needs only transformers."""
    given = {name: value for name in TRAINERS if (value := getattr(args, name))}
    peers = [Peer(name=name, python=value, job={}) for name, value in given.items() if name != "minimind"]
    if "minimind" in given:
        checkout = str(Path(given["minimind"]).resolve())
        job = {"minimind": checkout, "version": commit_of(checkout)}
        peers.append(Peer(name="minimind", python=sys.executable, job=job))
    return peers


def prepare(folder: Path, peer: Peer, steps: int, batch: int) -> None:
    """Writes what all sides read: rows, weights with a tokenizer, and the job."""
    case = CASES[peer.case]
    rows = rows_of(case, steps * batch)
    (folder / "rows.json").write_text(json.dumps(rows))
    (minimind_model if peer.name == "minimind" else smollm2_model)(folder / "model", peer)
    # Not one with more tokens than the model: axolotl would resize the model.
    tokenizer = load(case) if peer.case == "minimind" else packaged_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    longest = max(len(row["input_ids"]) for row in rows)
    job = {"steps": steps, "batch": batch, "longest": longest, "hidden": case.hidden}
    job |= {"litgpt_name": "SmolLM2-135M", "torchtune_model": torchtune_model(case)}
    (folder / "job.json").write_text(json.dumps(job | peer.job))


def torchtune_model(case: Case) -> dict[str, Any]:
    """SmolLM2's shape in torchtune's terms."""
    return {
        "vocab_size": case.vocabulary,
        "num_layers": case.layers,
        "num_heads": case.heads,
        "num_kv_heads": case.kv_heads,
        "embed_dim": case.hidden,
        "intermediate_dim": case.intermediate,
        "max_seq_len": SMOLLM2_POSITIONS,
        "norm_eps": 1e-5,
        "rope_base": SMOLLM2_THETA,
    }


def smollm2_model(folder: Path, _: Peer) -> None:
    """SmolLM2-135M's shape with an untied head, as in LitGPT."""
    model = model_of(
        CASES["smollm2-135m"],
        tie_word_embeddings=False,
        max_position_embeddings=SMOLLM2_POSITIONS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": SMOLLM2_THETA},
    )
    model.save_pretrained(folder)


def minimind_model(folder: Path, peer: Peer) -> None:
    """MiniMind's newest shape, 512 wide, which is Qwen3 in transformers; weights go where the script looks."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    case = CASES["minimind"]
    config = Qwen3Config(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        intermediate_size=math.ceil(case.hidden * math.pi / 64) * 64,
        num_hidden_layers=case.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=case.hidden // 8,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    out = Path(peer.job["minimind"]) / "out"
    out.mkdir(exist_ok=True)
    torch.save(model.state_dict(), out / f"pretrain_{case.hidden}.pth")


def compare(folder: Path, peer: Peer, repeats: int) -> Run:
    """Medians of all sides and of the ratios within a round; stops if gradients differ."""
    pythons = {"honed": sys.executable, **dict.fromkeys(peer.sides, peer.python)}
    found: dict[str, list[Run]] = {side: [] for side in pythons}
    for _ in range(repeats):
        for side, python in pythons.items():
            found[side].append(measure(side, python, folder))
    differences = {side: difference(found[side][0]["norms"], found["honed"][0]["norms"]) for side in peer.sides}
    if max(differences.values()) > SAME:
        raise SystemExit(f"{peer.name}: the sides did not compute the same gradients: {differences}")
    return {
        "trainer": peer.name,
        "case": peer.case,
        "versions": {side: runs[0]["versions"] for side, runs in found.items()},
        "version": peer.job.get("version") or found[peer.sides[0]][0]["versions"][peer.name],
        "differences_of_norms": {side: float(f"{value:.1e}") for side, value in differences.items()},
        "seconds_per_step": {side: median(runs, "seconds") for side, runs in found.items()},
        "peak_gb": {side: median(runs, "peak_gb") for side, runs in found.items()},
        "times_as_fast": {side: ratio(found, side, "seconds") for side in peer.sides},
        "times_the_memory": {side: ratio(found, side, "peak_gb") for side in peer.sides},
    }


def measure(side: str, python: str, folder: Path) -> Run:
    told = folder / "told.json"
    told.unlink(missing_ok=True)
    environment = {
        **os.environ,
        **THREADS,
        "CUDA_VISIBLE_DEVICES": "",
        "MKL_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
    }
    command = [python, "-W", "ignore", str(PEERS), side, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    if not told.exists():
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    found: Run = json.loads(told.read_text())
    return found


def difference(theirs: list[list[float]], ours: list[list[float]]) -> float:
    """The largest relative difference of the whole gradient's norm, and of each tensor's to the nearest one."""

    def whole(norms: list[list[float]]) -> float:
        return math.sqrt(sum(norm[-1] ** 2 for norm in norms))

    differences = [abs(whole(theirs) / whole(ours) - 1)]
    for *shape, norm in theirs:
        same_shape = [other[-1] for other in ours if other[:-1] == shape]
        if same_shape:
            differences.append(min(abs(norm - other) / max(other, 1e-30) for other in same_shape))
    return max(differences)


def commit_of(checkout: str) -> str:
    command = ["git", "-C", checkout, "log", "-1", "--format=%h of %cs"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def median(runs: list[Run], key: str) -> float:
    return round(statistics.median(run[key] for run in runs), 3)


def describe(result: Run) -> str:
    seconds, peak = result["seconds_per_step"], result["peak_gb"]
    lines = [f"{result['case']} against {result['trainer']} {result['version']}:"]
    for side, speed in result["times_as_fast"].items():
        lines.append(f"  honed {speed:.2f}x {side}, memory {result['times_the_memory'][side]:.2f}x")
    lines += [f"  {side:32}{seconds[side]:8.2f} s/step {peak[side]:7.2f} GB" for side in seconds]
    worst = max(result["differences_of_norms"].values())
    return "\n".join([*lines, f"  norms of the first step's gradients differ by at most {worst:.0e}"])


if __name__ == "__main__":
    main()
