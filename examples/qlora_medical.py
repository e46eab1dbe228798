"""QLoRA on a medical question-answer set: a 4-bit base, LoRA on the attention layers, and answers that stop.

  python examples/qlora_medical.py --model Qwen/Qwen2.5-7B-Instruct --data train_zh_1000.json     (a GPU of 8 GB)
  python examples/qlora_medical.py --max-rows 16 --max-steps 4 --max-length 128                   (any CPU, minutes)

Needs bitsandbytes: pip install 'honed[quant]'

    rows -> "### Question: ...\\n ### Answer: ..." -> only what follows " ### Answer:" is trained, EOS included
    base -> NF4 with double quantisation, frozen -> LoRA r=8, alpha=16, dropout=0.05 on q, k, v and o
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from honed import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer, load_model, load_tokenizer
from honed.data.read.sources import STARTER, read_rows
from honed.model.device import pick_device, pick_dtype

RESPONSE = " ### Answer:"
QUESTION = "癔症有哪些表现"
SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "medicalgpt_medical_sft_1k.jsonl"


def prompt_of(question: str) -> str:
    """The text before an answer, in training and at inference."""
    return f"### Question: {question}\n{RESPONSE}"


def formatting_func(row: dict[str, Any]) -> str:
    """A row in Alpaca's format as one text; EOS is appended when it is encoded."""
    return f"{prompt_of(row['instruction'])} {row['output']}"


def alpaca_rows(data: str, limit: int | None) -> list[dict[str, str]]:
    """Rows with `instruction` and `output`; a conversation contributes its first question and answer."""
    rows = []
    for _, row in read_rows(data):
        if len(rows) == limit:
            break
        turns = row.get("conversations") or row.get("messages")
        if turns is None:
            question = f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]
            rows.append({"instruction": question, "output": row["output"]})
        else:
            said = [(turn.get("from") or turn["role"], turn.get("value") or turn["content"]) for turn in turns]
            first, answer = [text for role, text in said if role != "system"][:2]
            rows.append({"instruction": first, "output": answer})
    return rows


def train(args: argparse.Namespace, tokenizer: Any) -> SFTTrainer:
    """Trains the adapter and saves it with its tokenizer."""
    device = pick_device()
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=pick_dtype(device),
    )
    trainer = SFTTrainer(
        load_model(args.model, device=device, quantization_config=bits),
        args=SFTConfig(
            output_dir=args.output,
            num_train_epochs=1,
            max_steps=args.max_steps,
            per_device_train_batch_size=1,
            learning_rate=args.learning_rate,
            max_length=args.max_length,
            logging_steps=args.logging_steps,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=alpaca_rows(args.data, args.max_rows),
        processing_class=tokenizer,
        formatting_func=formatting_func,
        data_collator=DataCollatorForCompletionOnlyLM(RESPONSE, tokenizer=tokenizer),
        peft_config=LoraConfig(
            r=8,
            lora_alpha=16,
            lora_dropout=0.05,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    trainer.save_model()
    return trainer


def answer(folder: str, question: str, *, max_new_tokens: int) -> tuple[str, bool]:
    """The saved adapter's answer, loaded with plain transformers, and whether the model ended it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = pick_device()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=pick_dtype(device)).to(device).eval()
    inputs = tokenizer(prompt_of(question), return_tensors="pt").to(device)
    with torch.no_grad():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[0, inputs["input_ids"].shape[1] :]
    stopped = tokenizer.eos_token_id in output.tolist()
    return tokenizer.decode(output, skip_special_tokens=True).strip(), stopped


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains, loads the saved adapter, and asks; returns what was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name, folder or Hub id")
    parser.add_argument("--data", default=str(SHARED) if SHARED.is_file() else STARTER, help="Alpaca or ShareGPT rows")
    parser.add_argument("--output", default="runs/qlora_medical", help="folder of the adapter")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-rows", type=int, help="use only the first rows")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop before the epoch ends")
    parser.add_argument("--max-length", type=int, default=512, help="longest row in tokens")
    parser.add_argument("--max-new-tokens", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--logging-steps", type=int, default=50)
    args = parser.parse_args(arguments)
    trainer = train(args, load_tokenizer(args.model))
    text, stopped = answer(args.output, args.question, max_new_tokens=args.max_new_tokens)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    result = {"losses": losses, "question": args.question, "answer": text, "stopped": stopped}
    print(json.dumps(result, ensure_ascii=False, indent=1))
    return result


if __name__ == "__main__":
    main()
