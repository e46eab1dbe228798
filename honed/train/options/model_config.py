"""ModelConfig and the functions that use it, under TRL's names (1.16), for TRL scripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from honed.errors import RecipeError
from honed.model.load.quantize import need_bitsandbytes


def option(default: Any, text: str, **metadata: Any) -> Any:
    """Returns a dataclass field with the help text and other metadata for `HfArgumentParser`."""
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class ModelConfig:
    """The model, its dtype and its adapter; fields and defaults are TRL's.

    The old name `torch_dtype` of `dtype` can still be read. TRL moved `trust_remote_code` to `SFTConfig`; here it is
    always False.

    Raises:
        RecipeError: both 4 and 8 bits are requested.
    """

    model_name_or_path: str | None = option(None, "Name, folder or Hub id of the model.")
    model_revision: str = option("main", "Branch, tag or commit of a Hub model.")
    dtype: str | None = option(
        "float32", "Number format of the weights.", choices=["auto", "bfloat16", "float16", "float32"]
    )
    attn_implementation: str | None = option(None, "transformers' name of an attention implementation, such as sdpa.")
    use_peft: bool = option(False, "Train a LoRA adapter.")
    lora_r: int = option(16, "Rank.")
    lora_alpha: int = option(32, "Scale, divided by the rank.")
    lora_dropout: float = option(0.05, "Dropout before the adapter.")
    lora_target_modules: list[str] | None = option(  # noqa: RUF009 - it returns a field
        None, "Layers with an adapter, or all-linear; peft's choice for the model if absent."
    )
    lora_target_parameters: list[str] | None = option(  # noqa: RUF009
        None, "Parameters with an adapter, such as those of experts."
    )
    lora_modules_to_save: list[str] | None = option(None, "Layers that are trained in full.")  # noqa: RUF009
    lora_task_type: str = option("CAUSAL_LM", "peft's task type.")
    use_rslora: bool = option(False, "Scale by alpha / sqrt(r) (rank-stabilised LoRA).")
    use_dora: bool = option(False, "Train magnitude and direction separately (DoRA).")
    load_in_8bit: bool = option(False, "8-bit base, with an adapter only.")
    load_in_4bit: bool = option(False, "4-bit base, with an adapter only.")
    bnb_4bit_quant_type: str = option("nf4", "4-bit data type.", choices=["fp4", "nf4"])
    use_bnb_nested_quant: bool = option(False, "Quantise the 4-bit scales as well.")
    bnb_4bit_quant_storage: str | None = option(None, "dtype that 4-bit weights are stored in.")

    trust_remote_code: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise RecipeError("load_in_8bit and load_in_4bit are both set.", fix="set one of them")
        if isinstance(self.lora_target_modules, list) and len(self.lora_target_modules) == 1:
            self.lora_target_modules = self.lora_target_modules[0]  # type: ignore[assignment] # "all-linear", a pattern

    @property
    def torch_dtype(self) -> str | None:
        """The older name of `dtype`."""
        return self.dtype


def get_peft_config(model_args: ModelConfig) -> Any:
    """The `LoraConfig` that the arguments describe, or None without `use_peft`."""
    if not model_args.use_peft:
        return None
    from peft import LoraConfig

    extra = {"target_parameters": model_args.lora_target_parameters} if model_args.lora_target_parameters else {}
    return LoraConfig(
        task_type=model_args.lora_task_type,
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
        modules_to_save=model_args.lora_modules_to_save,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        **extra,
    )


def get_quantization_config(model_args: ModelConfig) -> Any:
    """The `BitsAndBytesConfig` that the arguments describe, or None; 4-bit layers compute in `dtype`.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return None
    from transformers import BitsAndBytesConfig

    need_bitsandbytes()
    if model_args.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=None if model_args.dtype == "auto" else model_args.dtype,
        bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
        bnb_4bit_quant_storage=model_args.bnb_4bit_quant_storage,
    )


def get_kbit_device_map() -> dict[str, int] | None:
    """A device map that puts the whole model on this process's GPU; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    from accelerate import PartialState

    return {"": PartialState().local_process_index}
