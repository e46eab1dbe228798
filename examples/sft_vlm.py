"""Fine-tune a vision-language model on rows with images.

    python examples/sft_vlm.py Qwen/Qwen2.5-VL-3B-Instruct rows.jsonl runs/vlm

A row: {"messages": [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A cat."}],
        "images": ["cat.png"]}          paths are relative to rows.jsonl's folder; see docs/vision.md for other forms
"""

from __future__ import annotations

import sys

from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor

from honed import SFTConfig, SFTTrainer


def main(model_name: str, rows: str, output: str) -> None:
    """Trains an adapter and saves it with the processor."""
    trainer = SFTTrainer(
        AutoModelForImageTextToText.from_pretrained(model_name),
        args=SFTConfig(
            output_dir=output,
            train_on="assistant",
            max_length=2048,
            learning_rate=2e-4,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            dataloader_num_workers=2,
        ),
        train_dataset=rows,
        processing_class=AutoProcessor.from_pretrained(model_name),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    if trainer.ledger is not None:
        sys.stdout.write(trainer.ledger.summary() + "\n")
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
