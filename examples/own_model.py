"""Load the model yourself, with the dtype and attention implementation of your choice, and pass it.

python examples/own_model.py
"""

from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from honed import SFTConfig, SFTTrainer


def main(model: str = "HuggingFaceTB/SmolLM2-135M-Instruct", data: Any = "starter", **options: Any) -> SFTTrainer:
    """Trains; `options` are SFTConfig's. On a GPU with FlashAttention, use "flash_attention_2" instead of "sdpa".

    Keep weights in float32 if all are trained: bfloat16 loses small updates (docs/precision.md).
    """
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="float32", attn_implementation="sdpa")
    trainer = SFTTrainer(
        loaded,
        train_dataset=data,
        args=SFTConfig(**{"output_dir": "runs/own-model", "packing": True, **options}),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
