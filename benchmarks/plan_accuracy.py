"""The memory that `honed plan` predicts, against what `SFTTrainer` used.

    python benchmarks/plan_accuracy.py [--only NAME ...] [--out NAME.json]
    python benchmarks/plan_accuracy.py --again --out NAME.json

Two optimizer steps on random tokens with random weights, CPU, one thread, each configuration in a separate process. The
measured peak is how much the peak resident memory exceeds that before training, as Linux counts it, plus the model's
weights, which were already loaded; neither number includes the interpreter. (The memory events of torch's profiler give
about the same in a new process, but too little from a process's second training on.) Freed blocks are returned at once
(MALLOC_MMAP_THRESHOLD_), so that later ones do not reuse them unseen. Models have the shapes of public ones, some with
fewer layers; the cost of a layer does not depend on how many there are.

With `--out` and `--only`, other configurations in that file stay unchanged; each is written when it is done. `--again`
repeats the predictions for that day's measurements after a formula has changed, except where the plan chose how to
train.

`fake` configurations are not run: their tensors have shapes but no data (see fake_steps.py). So models that would never
fit here are also compared with the formulas; the work of their head is excluded from both numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import torch
from fake_steps import peak_without_bytes
from growth import resident

from honed.model.plan import optimizers, plan
from honed.model.plan.checkpointing import fewest
from honed.model.plan.shapes import find_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration; `layers` truncates the model, `bf16` trains under autocast, `budget` selects checkpointing.

    `in_backward` is `optimizer_in_backward`.
    """

    model: str
    method: str = "full"
    length: int = 256
    rows: int = 1
    layers: int | None = None
    checkpointing: bool = False
    budget: float | None = None
    bf16: bool = False
    accumulation: int = 1
    optim: str = optimizers.DEFAULT
    in_backward: bool = False
    fake: bool = False

    @property
    def name(self) -> str:
        """The name in tables."""
        words = [self.model, self.method, f"{self.rows} x {self.length}"]
        words += [f"{self.layers} layers"] if self.layers else []
        words += ["checkpointing"] if self.checkpointing else []
        words += [f"within {self.budget:g} GB"] if self.budget else []
        words += ["bf16"] if self.bf16 else []
        words += [f"accumulation {self.accumulation}"] if self.accumulation > 1 else []
        words += [self.optim] if self.optim != optimizers.DEFAULT else []
        words += ["optimizer in backward"] if self.in_backward else []
        return ", ".join(words)


CASES = (
    Case(model="SmolLM2-135M"),
    Case(model="SmolLM2-135M", length=512, rows=4, checkpointing=True),
    Case(model="SmolLM2-135M", method="lora", rows=4),
    Case(model="SmolLM2-135M", method="lora", rows=4, checkpointing=True),
    Case(model="SmolLM2-135M", method="lora", rows=4, budget=2.0),
    Case(model="SmolLM2-135M", rows=4, budget=3.2),
    Case(model="Qwen3-0.6B", method="lora", length=512, rows=2, layers=6, budget=2.0),
    Case(model="SmolLM2-135M", method="qlora", rows=2),
    Case(model="SmolLM2-360M", method="lora", length=512, layers=12),
    Case(model="minimind", length=512, rows=8),
    Case(model="minimind", length=340, rows=4, accumulation=2),
    Case(model="Qwen3-0.6B", length=512, layers=4),
    Case(model="Qwen3-0.6B", method="lora", length=1024, layers=6),
    Case(model="Qwen3-0.6B", method="lora", length=512, rows=2, layers=6, bf16=True),
    Case(model="Qwen2.5-0.5B", length=384, rows=2, layers=4, bf16=True),
    Case(model="Gemma-3-270M", method="lora", length=700, layers=6),
    Case(model="SmolLM2-135M", optim="muon"),
    Case(model="SmolLM2-135M", optim="adafactor"),
    Case(model="SmolLM2-135M", length=512, rows=4, checkpointing=True, in_backward=True),
    Case(model="Qwen3-0.6B", length=512, layers=4, optim="sgd"),
    Case(model="Qwen3-8B", method="lora", length=2048, fake=True),
    Case(model="Qwen3-8B", method="lora", length=8192, checkpointing=True, fake=True),
    Case(model="Qwen2.5-7B", method="qlora", length=512, checkpointing=True, fake=True),
    Case(model="Llama-3.1-8B", length=1024, checkpointing=True, fake=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[""], help="cases whose names hold one of these")
    parser.add_argument("--quick", action="store_true", help="the smallest model: whether it works, not how fast it is")
    parser.add_argument("--out")
    parser.add_argument("--again", action="store_true", help="new predictions for the measurements in --out")
    parser.add_argument("--one", metavar="NAME", help="one case, in this process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(compare(next(case for case in CASES if case.name == args.one))))
        return
    if args.quick:
        args.only = ["minimind"]
    rows = {} if args.out is None else kept(Path(args.out))
    for case in CASES:
        if args.again and (case.name not in rows or case.budget):
            continue
        if any(part in case.name for part in args.only):
            predicted, measured = (prediction(case), rows[case.name]["measured"]) if args.again else alone(case)
            error = predicted / measured - 1
            rows[case.name] = {"case": case.name, "fake": case.fake, "predicted": predicted, "measured": measured}
            print(f"{case.name:60} {predicted / 1e9:8.3f} {measured / 1e9:8.3f} GB {error:+7.1%}", flush=True)
            if args.out:
                write(Path(args.out), [rows[case.name] for case in CASES if case.name in rows])
    print(f"{len(rows)} configurations, the worst is {worst_of(rows.values()):.1%} off")


def machine() -> dict[str, str]:
    return {"processor": platform.machine(), "torch": torch.__version__}


def worst_of(rows: Iterable[dict[str, Any]]) -> float:
    return max(abs(row["predicted"] / row["measured"] - 1) for row in rows)


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    record = {"date": date.today().isoformat(), "machine": machine(), "worst": round(worst_of(rows), 4), "rows": rows}
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def kept(file: Path) -> dict[str, dict[str, Any]]:
    """The configurations measured before, by name; none from another day or machine."""
    if not file.is_file():
        return {}
    record = json.loads(file.read_text(encoding="utf-8"))
    same = record["date"] == date.today().isoformat() and record["machine"] == machine()
    return {row["case"]: row for row in record["rows"]} if same else {}


def compare(case: Case) -> tuple[int, int]:
    """Predicted and measured peak in bytes."""
    config = config_of(case)
    if not case.fake:
        return prediction(case), measure(case, config)
    how = {"method": case.method, "rows": case.rows, "length": case.length, "checkpointing": case.checkpointing}
    return prediction(case), peak_without_bytes(config, **how)


def prediction(case: Case) -> int:
    """Predicted peak in bytes."""
    config = config_of(case)
    dtype = "bfloat16" if case.bf16 and case.method != "full" else "float32"
    job = plan.job_for(
        config,
        method=case.method,
        length=case.length,
        rows=case.rows,
        checkpointing=case.checkpointing,
        accumulation=case.accumulation,
        device="cpu",
        dtype="bfloat16" if case.fake else dtype,
    )
    job = replace(job, optimizer=optimizers.Optimizer(name=case.optim, in_backward=case.in_backward))
    if case.budget:
        job = fewest(job, case.budget * plan.GB).job
    if case.bf16:
        job = replace(job, formats=replace(job.formats, compute=2))
    if case.fake:
        return without_head(job)
    found = plan.estimate(job)
    return found.peak - found.parts.overhead


def alone(case: Case) -> tuple[int, int]:
    """The same, measured in a separate process."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", case.name]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case.name} failed:\n{done.stderr[-3000:]}")
    predicted, measured = json.loads(done.stdout.splitlines()[-1])
    return predicted, measured


def config_of(case: Case) -> Any:
    if case.model == "minimind":
        from honed.model.minimind.config import MiniMindConfig
        from honed.model.minimind.minimind import register

        register()
        config: Any = MiniMindConfig()
    else:
        config = find_config(case.model)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    if case.layers:
        config.num_hidden_layers = case.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: case.layers]
    return config


def measure(case: Case, config: Any) -> int:
    """Trains two steps; the peak in bytes."""
    from honed import SFTConfig, SFTTrainer
    from honed.model.adapters.adapters import lora_config

    draw = np.random.default_rng(0)
    data = [
        {"input_ids": draw.integers(3, config.vocab_size, case.length).tolist()}
        for _ in range(2 * case.rows * case.accumulation)
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = new_model(case, config, folder)
        weights = sum(s.nbytes() for s in {id(t): t.untyped_storage() for t in every_tensor(model)}.values())
        trainer = SFTTrainer(
            model,
            SFTConfig(
                output_dir=folder,
                max_steps=2,
                per_device_train_batch_size=case.rows,
                gradient_accumulation_steps=case.accumulation,
                gradient_checkpointing="auto" if case.budget else case.checkpointing,
                memory_budget=case.budget,
                max_length=case.length,
                train_on="all",
                bf16=case.bf16,
                optim=case.optim,
                optimizer_in_backward=case.in_backward,
                max_grad_norm=0.0 if case.in_backward else 1.0,
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=data,
            processing_class=tokenizer(),
            peft_config=None if case.method == "full" else lora_config(),
        )
        adapter = sum(p.numel() * 4 for p in trainer.model.parameters() if p.requires_grad) * (case.method != "full")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        before = resident("VmRSS")
        trainer.train()
    return weights + adapter + int(1e6 * (resident("VmHWM") - before))


def new_model(case: Case, config: Any, folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    dtype = torch.bfloat16 if case.bf16 and case.method != "full" else torch.float32
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    if case.method != "qlora":
        return model
    from honed.model.load.load import load_model

    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return load_model(folder, device=torch.device("cpu"), dtype="float32", quantization="nf4")


def every_tensor(model: Any) -> list[torch.Tensor]:
    """Parameters, buffers, and the scales of quantised weights."""
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [t for t in (state.absmax, state.state2.absmax, state.code) if t is not None]
    return tensors


def tokenizer() -> Any:
    """A tokenizer, which the trainer requires although the rows are tokenised."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def without_head(job: plan.Job) -> int:
    """The prediction without the cost of scoring."""
    moments = plan.estimate(job).moments
    return max(moment.total - moment.head - moment.overhead for moment in moments.values())


if __name__ == "__main__":
    main()
