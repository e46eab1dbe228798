"""What people who come from other trainers call the keys of a recipe, for the errors that name unknown keys."""

from __future__ import annotations

from collections.abc import Mapping

# A recipe's key, and other names for it: LLaMA-Factory's, axolotl's, TRL's command line's, peft's, and short ones.
_CALLED: dict[str, str] = {
    "model": "base_model model_name model_name_or_path model_id model_path checkpoint",
    "dtype": "torch_dtype precision",
    "quantization": "load_in_4bit load_in_8bit quantization_bit quantize bits",
    "output": "out output_folder out_dir save_dir",
    "data.files": "dataset datasets dataset_name dataset_path dataset_dir data_path data_file data_files train_file "
    "train_files train_data training_data",
    "data.held_out": "eval_dataset eval_file eval_data val_file val_data validation_file validation_data test_file",
    "data.eval_share": "val_size val_set_size validation_split test_size eval_size",
    "data.max_length": "max_seq_length max_seq_len max_len model_max_length seq_len seq_length sequence_len "
    "sequence_length cutoff_len context_length block_size",
    "data.packing": "pack sample_packing neat_packing",
    "data.template": "chat_template",
    "data.system": "system_prompt default_system",
    "data.train_on": "train_on_inputs train_on_prompt",
    "data.workers": "num_proc preprocessing_num_workers dataset_processes num_workers",
    "lora.r": "lora_r lora_rank rank",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.target_modules": "lora_target lora_target_modules",
    "lora.init": "init_lora_weights",
    "learning_rate": "lr",
    "num_train_epochs": "epoch epochs num_epochs n_epochs max_epochs train_epochs",
    "max_steps": "steps num_steps train_steps max_iters iters",
    "per_device_train_batch_size": "bs batch batch_size micro_batch_size train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "accumulation accumulation_steps grad_accum grad_accum_steps",
    "lr_scheduler_type": "lr_scheduler scheduler lr_schedule",
    "optim": "optimizer",
    "max_grad_norm": "clip grad_clip gradient_clip gradient_clipping clip_grad_norm max_norm",
    "weight_decay": "wd",
    "warmup_steps": "warmup warmup_ratio",
    "resume_from_checkpoint": "resume",
}
OTHER_NAMES: Mapping[str, str] = {name: key for key, names in _CALLED.items() for name in names.split()}


def key_called(name: str) -> str | None:
    """Returns the recipe's key that has this name elsewhere, such as "lora.r" for "lora_rank"; None if unknown."""
    return OTHER_NAMES.get(name.rsplit(".", maxsplit=1)[-1].lower().replace("-", "_"))
