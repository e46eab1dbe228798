"""One forward and backward over several answers to one question: honed with and without sharing, and TRL.

    python benchmarks/shared_prefix.py [--case NAME] [--answers 8] [--repeats 3] [--out NAME.json]

Random tokens through a model with random weights, float32, one thread, interleaved. The loss is on the answers, and a
question has as many tokens as each answer. TRL gets the same documents as rows with a completion mask, in one batch in
each of its settings that work on a CPU (padded rows, padding_free, packing); documents are equally long, so padding
costs it nothing. The ratio is to the fastest of them. Losses and gradients of all sides are compared first.

Two bounds are shown with the measurements: tokens without sharing divided by tokens with it, and the same for matrix
products, which is lower because the head scores the answers' tokens with and without sharing. Time is processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import numpy as np
import torch
from training_step import CASES, Case, model_of

from honed.data.batch.collate import FlatCollator
from honed.data.batch.table import PackedRow
from honed.loss.objective import total_weight
from honed.train.forward import seams

TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "trl padded": {},
    "trl padding_free": {"padding_free": True},
    "trl packing": {"packing": True},
}
Step = Callable[[], tuple[float, int]]


# Tokens of the question, and of each answer.
TOKENS = {"smollm2-135m": 48, "minimind": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=TOKENS)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="one round of one model: whether it works, not how fast it is"
    )
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.quick:
        args.case, args.repeats = args.case or "minimind", 1
    torch.set_num_threads(1)
    results = []
    for name in [args.case] if args.case else TOKENS:
        about = {"case": name, "answers": args.answers, "tokens_each": TOKENS[name]}
        results.append(about | compare(CASES[name], TOKENS[name], args))
        print(json.dumps(results[-1], indent=1), flush=True)
    if args.out:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1}
        record = {"date": date.today().isoformat(), "machine": machine, "versions": versions(), "results": results}
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("honed", "trl", "torch", "transformers")}


def compare(case: Case, tokens_each: int, args: argparse.Namespace) -> dict[str, Any]:
    documents = draw_documents(case, tokens_each, args.answers)
    model, trls_model = model_of(case).train(), model_of(case).train()
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            "honed shared": ours(model, documents, tokens_each, share=True),
            "honed unshared": ours(model, documents, tokens_each, share=False),
            **{
                name: trls(trls_model, documents, tokens_each, folder, options)
                for name, options in TRL_SETTINGS.items()
            },
        }
        tokens = check(steps, model, trls_model)
        return summary(measure(steps, args.repeats), tokens) | bounds(case, args.answers * tokens_each, tokens)


def bounds(case: Case, answered: int, tokens: dict[str, int]) -> dict[str, float]:
    attention = 2 * case.hidden * case.hidden * (1 + case.kv_heads / case.heads)
    layers = case.layers * (attention + 3 * case.hidden * case.intermediate)
    head = answered * case.hidden * case.vocabulary
    unshared, shared = (tokens[f"honed {side}"] for side in ("unshared", "shared"))
    products = (unshared * layers + head) / (shared * layers + head)
    return {"ratio_of_tokens": round(unshared / shared, 3), "ratio_of_products": round(products, 3)}


def draw_documents(case: Case, tokens_each: int, answers: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    question, *rest = draw.integers(3, case.vocabulary, (1 + answers, tokens_each))
    return [np.concatenate([question, answer]) for answer in rest]


def ours(model: Any, documents: list[np.ndarray], question: int, *, share: bool) -> Step:
    found = seams.find_seams(model)
    weights = np.r_[np.zeros(question), np.ones(len(documents[0]) - question)].astype(np.float32)
    rows = [PackedRow(input_ids=ids.astype(np.int32), weights=weights, lengths=(len(ids),)) for ids in documents]

    def step() -> tuple[float, int]:
        batch = FlatCollator(share_prefixes=share)(rows)
        total = total_weight(batch["labels"], batch["loss_weights"])
        model.zero_grad()
        with seams.opened(model, found) as head:
            scores, _ = seams.token_scores(model, batch, head, total=total, extras=True)
            scores.loss.backward()
        return scores.loss.item(), batch["input_ids"].numel()

    return step


def trls(model: Any, documents: list[np.ndarray], question: int, folder: str, options: dict[str, Any]) -> Step:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    mask = [0] * question + [1] * (len(documents[0]) - question)
    rows = Dataset.from_list([{"input_ids": ids.tolist(), "completion_mask": mask} for ids in documents])
    tokens = sum(map(len, documents))
    config = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=1 if options.get("packing") else len(documents),
        max_length=tokens if options.get("packing") else None,
        completion_only_loss=True,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        **options,
    )
    trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer(PreTrainedTokenizerFast))
    batch = next(iter(trainer.get_train_dataloader()))

    def step() -> tuple[float, int]:
        model.zero_grad()
        loss = trainer.compute_loss(model, dict(batch))
        loss.backward()
        return loss.item(), batch["input_ids"].numel()

    return step


def tokenizer(fast: Any) -> Any:
    """A tokenizer, which TRL requires although the rows are tokenised."""
    from tokenizers import Tokenizer, models

    return fast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )


def check(steps: dict[str, Step], model: Any, trls_model: Any) -> dict[str, int]:
    """Tokens that each side computes; stops if losses or gradients differ."""
    tokens, expected = {}, None
    for name, step in steps.items():
        loss, tokens[name] = step()
        parameters = (trls_model if name.startswith("trl") else model).parameters()
        found = (torch.tensor(loss), torch.cat([p.grad.flatten() for p in parameters]))
        expected = expected or found
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
        apart = float((found[1] - expected[1]).norm() / expected[1].norm())
        if apart > 1e-4:
            raise SystemExit(f"{name}: its gradient is {apart:.1e} away from that of the first side")
    return tokens


def measure(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return seconds


def summary(seconds: dict[str, list[float]], tokens: dict[str, int]) -> dict[str, Any]:
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    best = min((name for name in medians if name.startswith("trl")), key=medians.__getitem__)

    def ratio(name: str) -> float:
        pairs = zip(seconds["honed shared"], seconds[name], strict=True)
        return round(statistics.median(b / a for a, b in pairs), 2)

    return {
        "seconds": {name: round(taken, 2) for name, taken in medians.items()},
        "tokens": tokens,
        "speedup_over_unshared": ratio("honed unshared"),
        "fastest_trl": best,
        "speedup_over_fastest_trl": ratio(best),
        "speedup_over_trl_packing": ratio("trl packing"),
    }


if __name__ == "__main__":
    main()
