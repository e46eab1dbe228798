"""Options that only change SFTConfig: NEFTune, a schedule, an optimizer, checkpointing, evaluation during training.

python examples/noise_and_schedule.py
"""

from typing import Any

from honed import SFTConfig, SFTTrainer


def main(model: Any = "smollm2-135m-instruct", data: Any = "starter", **options: Any) -> SFTTrainer:
    """Trains; `options` are SFTConfig's."""
    args = SFTConfig(
        **{
            "output_dir": "runs/noise",
            "neftune_noise_alpha": 5,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "optim": "adafactor",
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "eval_strategy": "epoch",
            **options,
        }
    )
    trainer = SFTTrainer(model, train_dataset=data, eval_dataset=data, args=args)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
