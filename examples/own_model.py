"""Load the model yourself, in the number format and with the attention that you want, and pass it.

python examples/own_model.py
"""

from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from honed import SFTConfig, SFTTrainer


def main(model: str = "HuggingFaceTB/SmolLM2-135M-Instruct", data: Any = "starter", **options: Any) -> SFTTrainer:
    """Trains; `options` are SFTConfig's. On a GPU with FlashAttention, name "flash_attention_2" instead of "sdpa".

    Weights that are all trained are best held in float32: bfloat16 loses small updates (docs/precision.md).
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
