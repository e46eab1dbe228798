"""A user's script with an SFTTrainer, which `test_trainer_sigterm.py` starts and signals. It is no test itself.

    python sigterm_script.py FOLDER

At the end of its third step, before the optimizer's, it writes "in step 3" and waits for a line of input.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from loop_program import make_rows
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from honed import SFTConfig, SFTTrainer
from honed.model.adapters.adapters import lora_config
from honed.model.minimind.tokenizer import train_tokenizer

STEPS, ROWS = 12, 16
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.01,
    "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    "gradient_checkpointing": False, "neftune_noise_alpha": 5.0, "dataloader_num_workers": 0,
}  # fmt: skip


class Waits(TrainerCallback):
    """Stops in the midst of the third step until the one who watches has done what they want."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            sys.stdout.write("in step 3\n")
            sys.stdout.flush()
            sys.stdin.readline()


def make_trainer(folder: str, *callbacks: TrainerCallback, **changes: Any) -> SFTTrainer:
    """An adapter with dropout on a tiny Llama."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    rows = make_rows(ROWS)
    return SFTTrainer(
        LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, initializer_range=0.3)),
        args=SFTConfig(output_dir=folder, **{**SETTINGS, **changes}),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=train_tokenizer(["why fox yes"] * 9, vocab_size=300),
        peft_config=lora_config(r=2, dropout=0.2),
        callbacks=list(callbacks),
    )


def main() -> None:
    """Trains, or goes on; then does what a script does after it."""
    trainer = make_trainer(sys.argv[1], Waits())
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model(f"{sys.argv[1]}/final")


if __name__ == "__main__":
    main()
