"""Old option names of TRL and transformers. Scripts that use them run unchanged, with a note."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from honed.errors import RecipeError
from honed.recipe import suggest
from honed.recipe_names import key_called

C = TypeVar("C")
Values = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """An option's new name; `value` converts an old value, None keeps it."""

    new: str
    value: Callable[[Any], Any] | None = None


# Options of SFTConfig, and of TrainingArguments before transformers 5.
RENAMED: Mapping[str, Renamed] = {
    "max_seq_length": Renamed(new="max_length"),
    "use_liger": Renamed(new="use_liger_kernel"),
    "evaluation_strategy": Renamed(new="eval_strategy"),
    "warmup_ratio": Renamed(new="warmup_steps"),  # accepts a fraction of all steps too
    "no_cuda": Renamed(new="use_cpu"),
    "per_gpu_train_batch_size": Renamed(new="per_device_train_batch_size"),
    "per_gpu_eval_batch_size": Renamed(new="per_device_eval_batch_size"),
    "push_to_hub_token": Renamed(new="hub_token"),
    "push_to_hub_model_id": Renamed(new="hub_model_id"),
    "group_by_length": Renamed(new="train_sampling_strategy", value=lambda on: "group_by_length" if on else "random"),
    "adafactor": Renamed(new="optim", value=lambda on: "adafactor" if on else "adamw_torch_fused"),
    "include_inputs_for_metrics": Renamed(new="include_for_metrics", value=lambda on: ["inputs"] if on else []),
}

# Options without a successor: name -> reason.
WITHOUT_EFFECT: Mapping[str, str] = {
    "dataset_batch_size": "rows are prepared in one pass",
    "num_of_sequences": "rows are packed by their real lengths",
    "chars_per_token": "rows are packed by their real lengths",
    "infinite": "max_steps alone sets how long to train",
    "prepare_in_int8_kwargs": "quantised models are prepared by peft when the adapter is attached",
    "overwrite_output_dir": "a run resumes only if resume_from_checkpoint is set",
    "save_safetensors": "weights are always saved as safetensors",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR sets it now",
    "half_precision_backend": "bf16 and fp16 use torch's own autocast",
    "fp16_backend": "bf16 and fp16 use torch's own autocast",
    "fp16_opt_level": "bf16 and fp16 use torch's own autocast",
    "use_mps_device": "an Apple GPU is found automatically",
    "ray_scope": "it belongs to hyperparameter search",
    "past_index": "no model of this kind is left",
    "jit_mode_eval": "torch_compile replaces it",
    "use_ipex": "torch has these kernels built in",
    "tpu_metrics_debug": "debug='tpu_metrics_debug' sets it now",
    "include_tokens_per_second": "tokens per second are always logged",
}

# Arguments of SFTTrainer before TRL 0.13 that are now SFTConfig's.
MOVED = (
    "dataset_text_field", "max_seq_length", "max_length", "packing", "eval_packing", "neftune_noise_alpha",
    "model_init_kwargs", "dataset_kwargs", "dataset_num_proc",
)  # fmt: skip

REFUSED: Mapping[str, str] = {
    "model_init": "pass the model itself, or its name",
    "load_in_8bit": "pass quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    "load_in_4bit": "pass quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
}


def takes_old_names(cls: type[C]) -> type[C]:
    """Class decorator for a dataclass: its constructor also accepts old names, and lists them in `old_names`.

    They can also be read and set as attributes. Derived dataclasses generate their own constructor and accept old
    names only through `TrlParser`.

    Raises:
        RecipeError: from the constructor, if a name never was an option, or an option is given under both names.
    """
    generated: Any = cls.__init__

    @functools.wraps(generated)
    def init(self: Any, *args: Any, **given: Any) -> None:
        known = {field.name for field in fields(self) if field.init}
        values, self.old_names = modern(given, known, where=cls.__name__)
        generated(self, *args, **values)

    setattr(cls, "__init__", init)  # noqa: B010 - mypy allows no assignment to a method
    setattr(cls, "old_names", ())  # noqa: B010 - for instances of derived dataclasses
    for old, renamed in RENAMED.items():
        setattr(cls, old, _alias(old, renamed))
    return cls


def _alias(old: str, renamed: Renamed) -> property:
    """Returns a property that reads and sets the option under its new name."""

    def get(self: Any) -> Any:
        return getattr(self, renamed.new)

    def put(self: Any, value: Any) -> None:
        setattr(self, renamed.new, renamed.value(value) if renamed.value else value)
        tell_of(self, _told(old))

    return property(get, put, doc=f"The old name of `{renamed.new}`.")


def tell_of(options: Any, note: str) -> None:
    """Adds a note to `old_names` of options that accept old names."""
    options.old_names = [*options.old_names, note]


def _told(old: str) -> str:
    return f"{old} is called {RENAMED[old].new} now."


def modern(given: Mapping[str, Any], known: Collection[str], *, where: str) -> tuple[Values, list[str]]:
    """Returns the options under their new names, and a note for each old one.

    Args:
        known: the new names.
        where: whose options they are, for messages.

    Raises:
        RecipeError: see `takes_old_names`.
    """
    values: Values = {}
    notes: list[str] = []
    for name, value in given.items():
        if name in known:
            _put(values, name, value, name)
        elif name in RENAMED:
            renamed = RENAMED[name]
            _put(values, renamed.new, renamed.value(value) if renamed.value else value, name)
            notes.append(_told(name))
        elif name in WITHOUT_EFFECT:
            notes.append(f"{name} has no effect: {WITHOUT_EFFECT[name]}.")
        else:
            raise RecipeError(f"{where} has no option {name!r}.", fix=_fix(name, known))
    return values, notes


def _fix(name: str, known: Collection[str]) -> str:
    if (key_called(name) or "").startswith("lora."):
        return "pass peft_config=peft.LoraConfig(...) to SFTTrainer"
    return suggest(name, known)


def adopt(
    args: Any, old: Mapping[str, Any], processing_class: Any, signature: inspect.Signature
) -> tuple[Any, list[str]]:
    """Moves arguments that SFTTrainer took in the past into its own `args`.

    Returns:
        The processing class, and one note about all old names, those in `args` too.

    Args:
        old: the arguments of SFTTrainer that are not in its `signature`.

    Raises:
        RecipeError: SFTTrainer never had an argument, or it can no longer work.
    """
    moved, notes = {}, []
    for name, value in old.items():
        if name == "tokenizer":
            if processing_class is not None:
                raise RecipeError("tokenizer and processing_class are one argument.", fix="pass processing_class only")
            processing_class = value
            notes.append("tokenizer is called processing_class now.")
        elif name in MOVED:
            moved[name] = value
            notes.append(f"{name} is an option of SFTConfig now.")
        elif name in WITHOUT_EFFECT:
            notes.append(f"{name} has no effect: {WITHOUT_EFFECT[name]}.")
        elif name in REFUSED:
            raise RecipeError(f"SFTTrainer does not take {name}.", fix=REFUSED[name])
        else:
            known = signature.parameters.keys() - {"self", "old"}
            raise RecipeError(f"SFTTrainer has no argument {name!r}.", fix=suggest(name, known))
    values, _ = modern(moved, MOVED[:1] + MOVED[2:], where="SFTTrainer")
    for name, value in values.items():
        if value is not None:  # None was the default
            setattr(args, name, value)
    notes = [*args.old_names, *notes]
    return processing_class, [" ".join(dict.fromkeys(notes))] if notes else []


def _put(values: Values, name: str, value: Any, as_given: str) -> None:
    if name in values:
        raise RecipeError(f"{name} is given twice, once as {as_given}.", fix=f"leave {as_given} out")
    values[name] = value
