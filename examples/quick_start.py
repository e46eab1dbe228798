"""Fine-tune a model by name, on the packaged starter set, with TRL's defaults.

python examples/quick_start.py
"""

from typing import Any

from honed import SFTConfig, SFTTrainer


def main(model: Any = "smollm2-135m-instruct", data: Any = "starter", **options: Any) -> SFTTrainer:
    """Trains; `options` are SFTConfig's."""
    args = SFTConfig(**{"output_dir": "runs/quick-start", "max_length": 512, **options})
    trainer = SFTTrainer(model, train_dataset=data, args=args)
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
