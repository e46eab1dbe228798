"""Rows per second from a file to training tokens: honed against TRL, the same rows, one thread, interleaved.

    python benchmarks/data_preparation.py [--rows 52000] [--repeats 3] [--out benchmarks/results/NAME.json]

Every measurement is a separate process, alternating between honed and TRL. honed reads the JSONL file, prepares it and
writes its cache. TRL's clock starts when the file is already an Arrow dataset, and covers
`SFTTrainer._prepare_dataset`, which writes its own cache files. Both print a digest over the ids and labels of every
row (of every document if rows are packed); the ratio is only printed if the digests are equal.

In addition: honed with two processes against honed with one, and the seconds to open the prepared data again. honed
caches on disk what it has verified about a tokenizer (over half a second, once per machine); a warm-up run does this.

Rows: question and answer pairs of five files in ../shared/data, distinct and shuffled, then repeated to the requested
number, and also without repetition. Without that folder, the packaged starter set repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("HONED_SHARED", ROOT.parent / "shared")) / "data"
KINDS = ("prompt_completion", "messages", "text")
MAX_LENGTH = 1024
# The same text as the tokenizer's own template, with markers that TRL needs and honed does not.
TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}{%- for message in messages %}{%- if message['role'] == 'assistant' %}"
    "{{- '<|im_start|>assistant\\n' }}{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}"
    "{{- '\\n' }}{%- else %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
THREADS = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    args = arguments()
    if args.one:
        side, kind = args.one
        print(json.dumps(SIDES[side](kind, Path(args.file))))
        return
    if args.quick:
        args.rows, args.repeats = 500, 1
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for label, count in (("repeated", args.rows), ("distinct", None)):
            pairs = distinct_pairs()[: 500 if args.quick else None]
            rows = (pairs * (count // len(pairs) + 1))[:count] if count else pairs
            for kind in KINDS:
                file = write(rows, kind, Path(folder) / f"{label}-{kind}.jsonl")
                if not results:
                    measure("ours", kind, file)
                counts = {"rows": len(rows), "distinct": len(pairs), "repeats": args.repeats}
                results.append(compare(kind, file, label=label, **counts))
                print(describe(results[-1]), flush=True)
    if args.out:
        record = {"date": date.today().isoformat(), "machine": machine(), "versions": versions(), "results": results}
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="500 rows, one round: whether it works, not how fast it is"
    )
    parser.add_argument("--out")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "KIND"), help="one measurement, in this process")
    parser.add_argument("--file")
    return parser.parse_args()


def compare(kind: str, file: Path, *, label: str, rows: int, distinct: int, repeats: int) -> dict[str, Any]:
    """Medians of both sides and of the pairwise ratios; stops if their results differ."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, measured in found.items():
            measured.append(measure(side, kind, file))
    digests = {one["digest"] for measured in found.values() for one in measured}
    if len(digests) != 1:
        raise SystemExit(f"{kind}, {label}: the two sides did not compute the same: {digests}")
    ratios = ratios_of(found["ours"], found["trl"])
    return {
        "kind": kind,
        "rows": label,
        "count": rows,
        "distinct": distinct,
        **{f"{side}_rows_per_second": round(rows / median(m, "seconds")) for side, m in found.items()},
        **{f"{side}_peak_gb": round(median(m, "peak_gb"), 3) for side, m in found.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "two_processes_over_one": round(statistics.median(ratios_of(found["ours_two"], found["ours"])), 2),
        "seconds_to_open_again": round(median(found["ours"], "again"), 3),
    }


def ratios_of(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[float]:
    return [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]


def measure(side: str, kind: str, file: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, "--one", side, kind, "--file", str(file)]
    done = subprocess.run(command, env={**os.environ, **THREADS}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}, {kind} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def ours(kind: str, file: Path, *, workers: int = 1) -> dict[str, Any]:
    from honed.data.prepare.cache import prepare_cached
    from honed.data.prepare.options import PrepareOptions

    tokenizer = load_tokenizer()
    packing = kind == "text"
    options = PrepareOptions(
        train_on={"messages": "assistant"}.get(kind, "completion"),
        max_length=MAX_LENGTH if packing else None,
        overlong="truncate",
        packing=packing,
    )
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        prepared = prepare_cached(str(file), tokenizer, options, workers=workers, root=Path(cache))
        seconds = time.perf_counter() - start
        peak = peak_gb()
        start = time.perf_counter()
        prepare_cached(str(file), tokenizer, options, root=Path(cache))
        again = time.perf_counter() - start
        table = prepared.rows.table
        documents = [table.row([n]) for n in range(len(table))]
        return {**report(seconds, peak, [(d.input_ids, d.weights > 0) for d in documents], packing), "again": again}


def ours_two(kind: str, file: Path) -> dict[str, Any]:
    return ours(kind, file, workers=2)


def trl(kind: str, file: Path) -> dict[str, Any]:
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer()
    packing = kind == "text"
    with tempfile.TemporaryDirectory() as cache:
        dataset = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=cache)
        config = SFTConfig(
            output_dir=cache,
            report_to="none",
            use_cpu=True,
            bf16=False,
            max_length=MAX_LENGTH if packing else None,
            packing=packing,
            assistant_only_loss=kind == "messages",
        )
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
        trainer = SFTTrainer(model, args=config, train_dataset=dataset.select(range(4)), processing_class=tokenizer)
        start = time.perf_counter()
        done = trainer._prepare_dataset(dataset, tokenizer, config, packing, None, "train")
        seconds = time.perf_counter() - start
        peak = peak_gb()
        return report(seconds, peak, trl_documents(done.with_format("numpy"), packing), packing)


def trl_documents(done: Any, packing: bool) -> list[tuple[Any, Any]]:
    """The ids and the trained mask of every document that TRL prepared."""
    import numpy as np

    documents = []
    for row in done:
        ids = row["input_ids"]
        trained = row["labels"] != -100 if "labels" in row else np.ones(len(ids), dtype=bool)
        for key in ("completion_mask", "assistant_masks"):
            if key in row:
                trained = trained & (row[key] == 1)
        ends = np.cumsum(row["seq_lengths"]) if packing else [len(ids)]
        starts = [0, *ends[:-1]]
        documents += [(ids[a:b], trained[a:b]) for a, b in zip(starts, ends, strict=True)]
    return documents


def report(seconds: float, peak: float, documents: list[tuple[Any, Any]], packing: bool) -> dict[str, Any]:
    """The result of one run; the first label of a document does not count, because nothing predicts it."""
    parts = [ids.astype("<i4").tobytes() + trained[1:].astype("u1").tobytes() for ids, trained in documents]
    digest = hashlib.sha256()
    for part in sorted(parts) if packing else parts:
        digest.update(part)
    return {"seconds": seconds, "peak_gb": peak, "digest": digest.hexdigest(), "documents": len(documents)}


def load_tokenizer() -> Any:
    """Qwen's tokenizer, or the packaged model's if that is missing."""
    from transformers import AutoTokenizer

    if not (SHARED / "qwen_tokenizer").is_dir():
        return packaged_tokenizer()
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "qwen_tokenizer")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def packaged_tokenizer() -> Any:
    from honed.model.load.load import load_tokenizer as load

    tokenizer = load("smollm2-135m-instruct")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def distinct_pairs() -> list[tuple[str, str]]:
    """Questions and answers, distinct, shuffled with seed 0."""
    if not SHARED.is_dir():
        lines = (ROOT / "honed/data/starter/train.jsonl").read_text(encoding="utf-8").splitlines()
        return [tuple(m["content"] for m in json.loads(line)["messages"][:2]) for line in lines]  # type: ignore[misc]
    pairs = []
    for line in (SHARED / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        pairs.append((row["question"], row["answer"]))
    for name in ("gpteacher_codegen", "gpteacher_toolformer09", "new_codealpaca", "code_alpaca_2k"):
        for row in json.loads((SHARED / f"{name}.json").read_text(encoding="utf-8")):
            question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
            pairs.append((question, row.get("response") or row.get("output") or ""))
    # stripped, so that question + " answer" has one tokenization: TRL encodes both in one go, honed as inference does
    kept = list(dict.fromkeys((q.strip(), a.strip()) for q, a in pairs if q.strip() and a.strip()))
    random.Random(0).shuffle(kept)
    return kept


def write(pairs: list[tuple[str, str]], kind: str, file: Path) -> Path:
    with file.open("w", encoding="utf-8") as out:
        for question, answer in pairs:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            row = {
                "prompt_completion": {"prompt": question, "completion": f" {answer}"},
                "messages": {"messages": messages},
                "text": {"text": f"{question}\n{answer}"},
            }[kind]
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file


SIDES = {"ours": ours, "ours_two": ours_two, "trl": trl}


def describe(result: dict[str, Any]) -> str:
    return (
        f"{result['kind']:18}{result['rows']:9}{result['count']:>7,} rows ({result['distinct']:,} distinct)  "
        f"ours {result['ours_rows_per_second']:>7,}/s  TRL {result['trl_rows_per_second']:>6,}/s  "
        f"{result['ratio']:>5.1f}x   peak {result['ours_peak_gb']:.2f} against {result['trl_peak_gb']:.2f} GB"
        f"   two processes {result['two_processes_over_one']:.2f}x   again {result['seconds_to_open_again']:.2f} s"
    )


def median(measured: list[dict[str, Any]], key: str) -> float:
    return statistics.median(one[key] for one in measured)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def machine() -> dict[str, Any]:
    return {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1, "system": platform.system()}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("honed", "trl", "transformers", "tokenizers", "datasets")}


if __name__ == "__main__":
    main()
