"""Rows of your own format: a formatting function, and training on the answers only, in two ways.

python examples/formatting.py
"""

from typing import Any

from honed import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer, load_tokenizer

QUESTIONS = [{"question": f"What is {n} plus {n}?", "answer": f"{2 * n}"} for n in range(64)]


def as_pair(row: dict[str, str]) -> tuple[str, str]:
    """Prompt and completion: only the answer is trained."""
    return f"### Question: {row['question']}\n### Answer:", f" {row['answer']}"


def as_text(row: dict[str, str]) -> str:
    """One text, in which the collator finds the answer."""
    return "".join(as_pair(row))


def main(model: str = "smollm2-135m-instruct", data: Any = None, by_text: bool = False, **options: Any) -> SFTTrainer:
    """Trains; `options` are SFTConfig's. `by_text` uses a collator, as older scripts do."""
    tokenizer = load_tokenizer(model)
    collator = DataCollatorForCompletionOnlyLM("### Answer:", tokenizer=tokenizer) if by_text else None
    trainer = SFTTrainer(
        model,
        train_dataset=data or QUESTIONS,
        args=SFTConfig(**{"output_dir": "runs/formatting", **options}),
        formatting_func=as_text if by_text else as_pair,
        data_collator=collator,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
