"""Chat tokens for a base model: clone a template, train their new rows with LoRA, and see that answers stop.

  python examples/clone_chat_template.py --model HuggingFaceTB/SmolLM2-135M --source Qwen/Qwen3-0.6B
  python examples/clone_chat_template.py --source ../shared/data/qwen_tokenizer --max-rows 24 --max-steps 4

The tokens get rows in the embedding and the head, initialised from the mean of the others. LoRA alone would leave them
untrained; SFTTrainer detects this and trains these rows, and no others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice

import torch

from honed import SFTConfig, SFTTrainer, clone_chat_template, load_model, load_tokenizer
from honed.data.read.sources import STARTER, read_rows
from honed.model.adapters.adapters import lora_config
from honed.model.load.chat_tokens import new_token_rows, template_tokens


def main(arguments: Sequence[str] | None = None) -> SFTTrainer:
    """Clones, trains, and prints which rows were untrained and which were trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name, folder or Hub id")
    parser.add_argument("--source", required=True, help="folder or Hub id of a tokenizer with a chat template")
    parser.add_argument("--data", default=STARTER)
    parser.add_argument("--output", default="runs/cloned_template")
    parser.add_argument("--max-rows", type=int)
    parser.add_argument("--max-steps", type=int, default=-1)
    args = parser.parse_args(arguments)

    model, tokenizer, added = clone_chat_template(
        load_model(args.model, device=torch.device("cpu")), load_tokenizer(args.model), args.source
    )
    print(f"{len(added)} tokens added; eos is {tokenizer.eos_token}")
    print("untrained rows of the template:", new_token_rows(model, template_tokens(tokenizer)))
    base = f"{args.output}/base"  # the adapter's base model: the model with the new rows
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    trainer = SFTTrainer(
        base,
        args=SFTConfig(output_dir=args.output, max_steps=args.max_steps, report_to="none", save_strategy="no"),
        train_dataset=[row for _, row in islice(read_rows(args.data), args.max_rows)],
        peft_config=lora_config(r=8),
    )
    for note in trainer.notes:
        print("note:", note)
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
