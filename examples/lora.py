"""Train an adapter, save it, and continue to train it.

python examples/lora.py
"""

from typing import Any

from peft import LoraConfig, PeftModel

from honed import SFTConfig, SFTTrainer, load_model, load_tokenizer
from honed.model.device import pick_device


def main(model: str = "smollm2-135m-instruct", data: Any = "starter", **options: Any) -> SFTTrainer:
    """Trains twice; `options` are SFTConfig's."""
    args = SFTConfig(**{"output_dir": "runs/lora", "learning_rate": 2e-4, "assistant_only_loss": True, **options})
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    first = SFTTrainer(model, train_dataset=data, args=args, peft_config=config)
    first.train()
    first.save_model()

    base = load_model(model, device=pick_device())
    adapted = PeftModel.from_pretrained(base, args.output_dir, is_trainable=True)
    second = SFTTrainer(adapted, train_dataset=data, args=args, processing_class=load_tokenizer(model))
    second.train()
    return second


if __name__ == "__main__":
    main()
