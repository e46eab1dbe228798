"""One run of a trainer in a separate process, started by other_trainers.py in the environment of that trainer.

    PYTHON benchmarks/peers.py NAME FOLDER

Top-level imports are from the standard library only, because honed is installed only for its own side. FOLDER holds the
common input: `job.json`, `rows.json` (token ids and labels) and `model/` (weights in transformers' format). Results go
to `told.json`: seconds of processor time per step, the norms of the first step's gradients, and peak memory. The
process ends after its last step, so nothing that a trainer does afterwards (saving, generating) counts.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import time
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-5


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    import torch

    torch.set_num_threads(1)
    job = json.loads((folder / "job.json").read_text())
    versions = {part: found for part in (name.partition("-")[0], "torch", "transformers") if (found := installed(part))}
    watch(folder / "told.json", job["steps"], versions)
    TRAINERS[name](folder, job)
    raise SystemExit(f"{name} ended before its step {job['steps']}")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def watch(file: Path, steps: int, versions: dict[str, str]) -> None:
    """Observes every step of any torch optimizer, and ends the process after the last."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    norms: list[list[float]] = []
    ends: list[float] = []

    def before(optimizer: Any, *_: Any) -> None:
        if not norms:
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            norms.extend([*p.shape, float(p.grad.norm())] for p in parameters if p.grad is not None)

    def after(*_: Any) -> None:
        ends.append(time.process_time())
        if len(ends) == steps:
            seconds = (ends[-1] - ends[0]) / (steps - 1) if steps > 1 else 0.0
            peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            told = {"seconds": seconds, "peak_gb": peak_gb, "norms": norms, "versions": versions}
            file.write_text(json.dumps(told))
            sys.stdout.flush()
            os._exit(0)

    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)


def rows_of(folder: Path) -> list[dict[str, list[int]]]:
    rows: list[dict[str, list[int]]] = json.loads((folder / "rows.json").read_text())
    return rows


def honed(folder: Path, job: dict[str, Any]) -> None:
    """SFTTrainer with its defaults, except for the settings that all sides share."""
    from honed import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(folder / "out"),
        max_steps=job["steps"],
        per_device_train_batch_size=job["batch"],
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        max_length=job["longest"],
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )
    SFTTrainer(str(folder / "model"), args=args, train_dataset=rows_of(folder)).train()


def llamafactory(folder: Path, job: dict[str, Any], **settings: Any) -> None:
    """`llamafactory-cli train` on tokenised rows (`tokenized_path`)."""
    from datasets import Dataset, DatasetDict
    from llamafactory.train.tuner import run_exp

    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows_of(folder)]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(folder / "tokens"))
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "model_name_or_path": str(folder / "model"),
            "template": "default",
            "dataset": "read from tokenized_path, but must be named",
            "tokenized_path": str(folder / "tokens"),
            "cutoff_len": job["longest"],
            "output_dir": str(folder / "out"),
            "overwrite_output_dir": True,
            "max_steps": job["steps"],
            "per_device_train_batch_size": job["batch"],
            "gradient_accumulation_steps": 1,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "disable_shuffling": True,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            **settings,
        }
    )


def llamafactory_keeping(folder: Path, job: dict[str, Any]) -> None:
    """LLaMA-Factory without activation checkpointing."""
    llamafactory(folder, job, disable_gradient_checkpointing=True)


def axolotl(folder: Path, job: dict[str, Any]) -> None:
    """`axolotl train` on tokenised rows, without activation checkpointing, batches flat or padded as it chooses."""
    import yaml
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train

    rows = folder / "axolotl.jsonl"
    lines = (json.dumps({**row, "attention_mask": [1] * len(row["input_ids"])}) for row in rows_of(folder))
    rows.write_text("".join(f"{line}\n" for line in lines))
    config = {
        "base_model": str(folder / "model"),
        "datasets": [{"path": str(rows), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        "sequence_len": job["longest"],
        "shuffle_merged_datasets": False,
        "curriculum_sampling": True,  # in the order of the file
        "sample_packing": False,
        "sdp_attention": True,
        "micro_batch_size": job["batch"],
        "gradient_accumulation_steps": 1,
        "max_steps": job["steps"],
        "learning_rate": LEARNING_RATE,
        "lr_scheduler": "constant",
        "optimizer": "adamw_torch",
        "max_grad_norm": 0.0,
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "gradient_checkpointing": False,
        "val_set_size": 0.0,
        "save_strategy": "no",
    }
    (folder / "axolotl.yml").write_text(yaml.safe_dump(config))
    do_train(load_cfg(str(folder / "axolotl.yml")), TrainerCliArgs())


def litgpt(folder: Path, job: dict[str, Any]) -> None:
    """`litgpt finetune_full`, with the micro-batch as large as the batch, our data loader and its own collation."""
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data.base import DataModule, get_sft_collate_fn
    from litgpt.finetune.full import setup
    from litgpt.prompts import Default
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
    from torch import tensor
    from torch.utils.data import DataLoader

    def tensors(row: dict[str, list[int]]) -> dict[str, Any]:
        counts = dict.fromkeys(("raw", "raw_plus_prompt_template"), len(row["input_ids"]))
        return {**{key: tensor(ids) for key, ids in row.items()}, "token_counts": counts}

    rows = [tensors(row) for row in rows_of(folder)]

    class Rows(DataModule):  # type: ignore[misc]
        prompt_style = Default()

        def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
            self.loader = DataLoader(rows, batch_size=batch_size, collate_fn=get_sft_collate_fn())  # type: ignore[arg-type]

        def train_dataloader(self) -> Any:
            return self.loader

        def val_dataloader(self) -> Any:
            return self.loader

    convert_hf_checkpoint(folder / "model", model_name=job["litgpt_name"])
    batch = job["batch"]
    setup(
        folder / "model",
        out_dir=folder / "out",
        precision="32-true",
        data=Rows(),
        train=TrainArgs(
            global_batch_size=batch, micro_batch_size=batch, lr_warmup_steps=1, epochs=2, max_steps=job["steps"] + 1
        ),
        eval=EvalArgs(interval=10**6, max_new_tokens=1, max_iters=1),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": LEARNING_RATE}},
    )


class TorchtuneTokenizer:
    """What a torchtune recipe needs of a tokenizer when its rows are tokenised."""

    pad_id = 0


def torchtune_rows(_: Any, folder: str) -> list[dict[str, list[int]]]:
    return [{"tokens": row["input_ids"], "labels": row["labels"]} for row in rows_of(Path(folder))]


def torchtune(folder: Path, job: dict[str, Any]) -> None:
    """torchtune's recipe `full_finetune_single_device`, without activation checkpointing."""
    from omegaconf import OmegaConf

    path = next(file for file in files("torchtune") or [] if file.name == "full_finetune_single_device.py")
    out, this = str(folder / "out"), Path(__file__).stem
    config = {
        "model": {"_component_": "torchtune.models.llama2.llama2", **job["torchtune_model"]},
        "tokenizer": {"_component_": f"{this}.TorchtuneTokenizer"},
        "dataset": {"_component_": f"{this}.torchtune_rows", "folder": str(folder)},
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(folder / "model"),
            "checkpoint_files": ["model.safetensors"],
            "recipe_checkpoint": None,
            "output_dir": out,
            "model_type": "LLAMA2",
        },
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": LEARNING_RATE},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": out},
        "output_dir": out,
        "resume_from_checkpoint": False,
        "seed": 0,
        "shuffle": False,
        "batch_size": job["batch"],
        "epochs": 1,
        "max_steps_per_epoch": None,
        "gradient_accumulation_steps": 1,
        "optimizer_in_bwd": False,
        "compile": False,
        "device": "cpu",
        "dtype": "fp32",
        "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
    }
    recipe = runpy.run_path(str(path.locate()))["FullFinetuneRecipeSingleDevice"](OmegaConf.create(config))
    recipe.setup(OmegaConf.create(config))
    recipe.train()


def minimind(folder: Path, job: dict[str, Any]) -> None:
    """MiniMind's own script, unchanged, from a checkout; only the dataset is ours, padded like MiniMind's."""
    import torch
    from torch.utils.data import Dataset

    class Rows(Dataset[Any]):
        """The rows, ordered so that the script, which shuffles with a seed, trains on them in our order."""

        def __init__(self, *_: Any, max_length: int, **__: Any) -> None:
            rows, self.length = rows_of(folder), max_length
            torch.manual_seed(42)
            order = torch.randperm(len(rows)).tolist()
            self.rows = [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            ids, labels = self.rows[index]["input_ids"], self.rows[index]["labels"]
            missing = self.length - len(ids)
            return torch.tensor(ids + [0] * missing), torch.tensor(labels + [-100] * missing)

    checkout = Path(job["minimind"])
    os.chdir(checkout / "trainer")
    sys.path.insert(0, str(checkout))
    import dataset.lm_dataset

    dataset.lm_dataset.SFTDataset = Rows
    sys.argv = ["train_full_sft.py", "--device", "cpu", "--batch_size", str(job["batch"]), "--num_workers", "0"]
    sys.argv += ["--max_seq_len", str(job["longest"]), "--hidden_size", str(job["hidden"]), "--grad_clip", "1e9"]
    sys.argv += ["--learning_rate", str(LEARNING_RATE), "--from_weight", "pretrain", "--epochs", "1"]
    runpy.run_path("train_full_sft.py", run_name="__main__")


TRAINERS = {
    "honed": honed,
    "llamafactory": llamafactory,
    "llamafactory-no-checkpointing": llamafactory_keeping,
    "axolotl": axolotl,
    "litgpt": litgpt,
    "torchtune": torchtune,
    "minimind": minimind,
}

if __name__ == "__main__":
    main()
