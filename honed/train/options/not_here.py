"""Names of TRL and Unsloth that honed does not have, and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping

PREFERENCES = "keep TRL for preferences, rewards and reinforcement learning; models saved by honed load there"
PACKING = "set SFTConfig(packing=True): rows are packed by their real lengths, documents isolated from each other"
MIXTURE = "pass train_dataset='file.jsonl', a folder or a dataset; mixtures: `data.sources` of a recipe (docs/data.md)"
COLLATOR = "leave data_collator out: honed's batches need none, and rows of messages are recognised"
SCRIPT_ARGUMENTS = "use honed.ScriptArguments; options of the training itself, such as packing, belong to SFTConfig"
ITERATIVE = "train the rows with SFTTrainer, or keep TRL below 0.24 for it"
DISTILLATION = "keep TRL for distillation"
BAR = "nothing is needed: the trainer shows a bar of its own"
TEMPLATE = "nothing is needed: assistant_only_loss=True takes any chat template, without {% generation %} marks"

NOT_HERE: Mapping[str, str] = {
    "pack_dataset": PACKING,
    "pack_examples": PACKING,
    "ConstantLengthDataset": PACKING,
    "truncate_dataset": "set SFTConfig(max_length=...): what is cut is counted in trainer.ledger",
    "get_dataset": MIXTURE,
    "DatasetMixtureConfig": MIXTURE,
    "DataCollatorForVisionLanguageModeling": "leave data_collator out: rows with images need none (docs/vision.md)",
    "DataCollatorForChatML": COLLATOR,
    "get_training_chat_template": TEMPLATE,
    "add_response_schema": "nothing is needed to train; transformers' tokenizer.response_schema parses answers",
    "supports_tool_calling": "nothing is needed: a template that does not show a row's tools or calls is refused",
    "prepare_multimodal_messages": "nothing is needed: rows with images are read as they are (docs/vision.md)",
    "RichProgressCallback": BAR,
    "init_zero_verbose": "nothing is needed; quiet other libraries by their own logging settings",
    "LogCompletionsCallback": "run `honed eval`, or generate in a TrainerCallback (docs/generation.md)",
    "WeaveCallback": "set report_to='wandb', or pass a TrainerCallback",
    "BEMACallback": "pass a TrainerCallback that averages the weights, or keep TRL for it",
    "is_xpu_available": "from transformers import is_torch_xpu_available",
    "is_npu_available": "from transformers import is_torch_npu_available",
    **{
        f"is_{package}_available": f"from transformers.{module} import is_{package}_available"
        for package, module in {
            **dict.fromkeys(("peft", "bitsandbytes", "liger_kernel", "rich"), "utils"),
            **dict.fromkeys(("wandb", "deepspeed"), "integrations"),
        }.items()
    },
    "set_seed": "from transformers import set_seed",
    "SftScriptArguments": SCRIPT_ARGUMENTS,
    "SftArgumentParser": "use honed.TrlParser",
    "IterativeSFTConfig": ITERATIVE,
    "IterativeSFTTrainer": ITERATIVE,
    "extract_prompt": PREFERENCES,
    "maybe_extract_prompt": PREFERENCES,
    "unpair_preference_dataset": PREFERENCES,
    "maybe_unpair_preference_dataset": PREFERENCES,
    "create_reference_model": PREFERENCES,
    "SyncRefModelCallback": PREFERENCES,
    "AutoModelForCausalLMWithValueHead": PREFERENCES,
    **{
        f"{method}{kind}": PREFERENCES
        for method in (
            *("DPO", "GRPO", "KTO", "Reward", "RLOO", "PPO", "PPOv2", "ORPO", "CPO", "OnlineDPO", "BCO"),
            *("NashMD", "XPO", "PRM"),
        )
        for kind in ("Config", "Trainer")
    },
    "DistillationConfig": DISTILLATION,
    "DistillationTrainer": DISTILLATION,
    "GKDConfig": DISTILLATION,
    "GKDTrainer": DISTILLATION,
    "FastLanguageModel": "pass the model's name to SFTTrainer, and peft_config=LoraConfig(...) (docs/migrating.md)",
    "FastModel": "pass the model's name to SFTTrainer, and peft_config=LoraConfig(...) (docs/migrating.md)",
    "get_chat_template": "set SFTConfig(chat_template_path=...), a Jinja file or a model that has the template",
    "standardize_sharegpt": "nothing is needed: ShareGPT rows are recognised",
    "is_bfloat16_supported": "leave bf16 and fp16 out: SFTConfig takes bf16 where the device has it",
}


def refusal(name: str) -> ImportError:
    """Returns the error for a name in `NOT_HERE`."""
    return ImportError(f"honed has no {name!r}.\n  fix: {NOT_HERE[name]}", name="honed")
