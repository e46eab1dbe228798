"""What a run starts from: arguments, model, tokenizer, attention. The caller's objects are not changed."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainingArguments, set_seed

from honed.data.prepare.prepare import tokenizer_with_template
from honed.data.vision.template import shows_images
from honed.errors import ModelError, RecipeError
from honed.loss.router import aux_loss_coefficient
from honed.model.adapters.adapters import ready_to_train
from honed.model.load.added_tokens import with_rows, with_tokens
from honed.model.load.load import load_model, load_processor, load_tokenizer, sees_images
from honed.model.load.packed_experts import PackedWeight
from honed.model.load.quantize import quantized_options
from honed.model.load.vocabulary import with_pad_token
from honed.model.minimind.minimind import register
from honed.ops import attention
from honed.train.forward import vision
from honed.train.forward.checkpointing import recomputes, set_switch
from honed.train.forward.lengths import fit_length, notes_on_rotations
from honed.train.forward.seams import Seams, base_model, find_seams, lora_alone, refuse_padding
from honed.train.forward.zero3 import loaded_whole
from honed.train.optimizers.trial import try_optimizer, try_schedule
from honed.train.options.config import SFTConfig
from honed.train.options.deepspeed import need_launcher
from honed.train.options.surroundings import is_sharded, only_first_rank_loads
from honed.train.ranks import tensor_parallel_size
from honed.train.trainer.overrides import overridden

BATCHES_OF_ONE = "set per_device_train_batch_size=1, per_device_eval_batch_size=1 and more gradient_accumulation_steps"
# Methods of Trainer that a subclass may override to make its own optimizer or schedule.
MAKE_OPTIMIZERS = (
    *("create_optimizer", "create_scheduler", "create_optimizer_and_scheduler", "get_optimizer_cls_and_kwargs"),
)
FLAT_ATTENTION = "flash"  # implementations of this name take the boundaries of documents


def own_arguments(args: TrainingArguments | None, model: Any) -> SFTConfig:
    """The arguments as an SFTConfig of our own; None gives TRL's defaults, with a folder named after the model."""
    if args is None:
        return SFTConfig(output_dir=f"{Path(model_name(model)).name or 'model'}-SFT")
    if isinstance(args, SFTConfig):
        return copy.deepcopy(args)
    given = {key: value for key, value in args.to_dict().items() if key in SFTConfig.__dataclass_fields__}
    given["hub_token"] = args.hub_token  # to_dict masks it
    return SFTConfig(**given)


def try_arguments(args: SFTConfig, cls: type, base: type, *own_parts: Any) -> None:
    """Makes optimizer and schedule on trial, unless the caller's are used.

    Args:
        cls: the class of the trainer; a subclass of `base` may make its own.
        own_parts: the caller's optimizer and schedule; None for those that the arguments name.

    Raises:
        RecipeError: the arguments cannot make them.
    """
    if any(own_parts) or any(overridden(cls, base, method) for method in MAKE_OPTIMIZERS):
        return
    try_optimizer(args)
    try_schedule(args)


def need_best_metric(args: SFTConfig, evaluation_sets: Sequence[str], *, more: bool) -> None:
    """Checks that evaluations compute `metric_for_best_model`, which transformers looks up after the first one.

    Args:
        evaluation_sets: their names; "" for one without a name.
        more: whether the caller computes other metrics as well.

    Raises:
        RecipeError: they do not.
    """
    if args.metric_for_best_model is None or args.eval_strategy.value == "no":
        return
    name = "eval_" + args.metric_for_best_model.removeprefix("eval_")
    prefixes = tuple(f"eval_{set_name}_" if set_name else "eval_" for set_name in evaluation_sets)
    metrics = ("loss", "mean_token_accuracy", "entropy") if args.token_metrics else ("loss",)
    known = [prefix + metric for prefix in prefixes for metric in metrics]
    timed = [prefix + metric for prefix in prefixes for metric in ("runtime", "samples_per_second", "steps_per_second")]
    if name not in (*known, *timed) and not (more and name.startswith(prefixes)):
        raise RecipeError(
            f"metric_for_best_model is {name!r}, which the evaluation does not compute.",
            fix=f"set one of: {', '.join(known)}; or return it from compute_metrics",
        )


def model_name(model: Any) -> str:
    """The name or folder that the model was, or is to be, loaded from."""
    return str(base_model(model).config.name_or_path) if isinstance(model, nn.Module) else os.fspath(model)


def trainable_model(
    model: Any,
    args: SFTConfig,
    processing_class: Any,
    *,
    quantization_config: Any,
    peft_config: Any,
    custom_batches: bool,
) -> tuple[nn.Module, list[str]]:
    """The model with its adapter, and notes; lowers our own `args` to what the model can do.

    Args:
        model, processing_class, quantization_config, peft_config: see `SFTTrainer`.
        custom_batches: whether the caller's collator makes the batches, with images or without.

    Raises:
        ModelError, RecipeError: it cannot be loaded, or not be trained as `args` ask for.
    """
    is_multimodal, tokenizer = vision.is_processor(processing_class), vision.tokenizer_of(processing_class)
    loaded, notes = make_model(model, args, quantization_config, is_multimodal=is_multimodal)
    notes += fit_to_model(args, loaded, tokenizer)
    if is_multimodal and not custom_batches:
        peft_config, more = vision.fit(args, loaded, peft_config)
        notes += more
    set_seed(args.seed)  # Trainer does so only after the adapter's weights are drawn
    trained, more = ready_to_train(
        loaded,
        peft_config,
        tokenizer=tokenizer,
        checkpointing=recomputes(args),
        trainable=args.trainable,
        added=args.add_tokens,
    )
    return trained, notes + more + ([vision.freeze_vision(trained)] if args.freeze_vision else [])


def make_model(
    model: Any, args: SFTConfig, quantization_config: Any = None, *, is_multimodal: bool = False
) -> tuple[nn.Module, list[str]]:
    """The model itself, or loaded from its name (with `is_multimodal` including its vision tower), and notes.

    Raises:
        ModelError, RecipeError: it cannot be loaded; the message says why.
    """
    options = dict(args.model_init_kwargs or {})  # type: ignore[arg-type]
    if isinstance(model, nn.Module):
        note = (
            "model_init_kwargs and quantization_config have no effect on a model that is loaded already. "
            "Pass the model's name instead, or load it with them."
        )
        return model, [note] if options or quantization_config is not None else []
    notes = []
    options = quantized_options(options, quantization_config)
    if "torch_dtype" in options:
        notes.append("torch_dtype is called dtype now (in model_init_kwargs).")
    if args.trust_remote_code:
        options.setdefault("trust_remote_code", True)
    if args.world_size > 1 and options.get("device_map") == "auto":
        options["device_map"] = {"": args.local_process_index}
        notes.append(
            "device_map='auto' would spread the model over the GPUs of the other ranks; each rank has its own."
        )
    need_launcher(args)
    with loaded_whole(args) as device:
        return load_model(model_name(model), device=device, with_vision=is_multimodal, **options), notes


def make_processing_class(given: Any, name: str, args: SFTConfig, rows: Any) -> Any:
    """The tokenizer (see `make_tokenizer`), or a vision model's processor if the `rows` (None: unknown) show images."""
    if given is None and shows_images(rows) and sees_images(name):
        given = load_processor(name)
    if not vision.is_processor(given):
        return make_tokenizer(given, name, args)
    return vision.with_tokenizer(given, make_tokenizer(given.tokenizer, name, args))


def make_tokenizer(given: Any, name: str, args: SFTConfig) -> Any:
    """The tokenizer to train and save with; a copy where `args` ask for another token or template.

    Args:
        given: `processing_class`; None to load it from the model's `name`.

    Raises:
        RecipeError: a token is not in the vocabulary, or there is no such template.
    """
    register()  # transformers warns of types that it does not know
    options = {"trust_remote_code": True} if args.trust_remote_code else {}
    if revision := (args.model_init_kwargs or {}).get("revision"):  # type: ignore[union-attr]
        options["revision"] = revision
    tokenizer = given if given is not None else load_tokenizer(name, **options)
    tokenizer = with_tokens(tokenizer, **args.token_options)
    if args.chat_template_path is not None:
        tokenizer = _with_template(tokenizer, args.chat_template_path)
    return with_pad_token(tokenizer)


def fit_to_model(args: SFTConfig, model: nn.Module, tokenizer: Any) -> list[str]:
    """Lowers our own `args` to what model and tokenizer can do, and adds rows for tokens, in place; returns notes.

    Raises:
        RecipeError: tensor-parallel ranks would get different rows, `max_length` exceeds the model's positions, or the
            experts' balance would get no gradient.
    """
    reentrant = bool(args.gradient_checkpointing) and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    if reentrant and aux_loss_coefficient(base_model(model).config.get_text_config(), args.router_aux_loss_coef):
        raise RecipeError(
            "Reentrant checkpointing silently drops the gradient of the router's auxiliary loss.",
            fix="leave use_reentrant out of gradient_checkpointing_kwargs, or set router_aux_loss_coef=0",
        )
    if tensor_parallel_size(model) > 1 and (args.tokens_per_step or args.streaming):
        raise RecipeError(
            "tokens_per_step and streaming give each rank its own rows; tensor-parallel ranks must share them.",
            fix="leave one of them out",
        )
    notes = with_rows(model, tokenizer, args.add_tokens) + fit_length(args, model, tokenizer)
    if args.gradient_checkpointing and not getattr(base_model(model), "supports_gradient_checkpointing", False):
        set_switch(args, on=False)
        notes.append(f"gradient_checkpointing has no effect: {type(base_model(model)).__name__} cannot do it.")
    notes += notes_on_rotations(model, args.max_length)
    if args.use_liger_kernel:  # Liger's layers with honed's head: Liger's loss would replace the model's forward
        config = args.liger_kernel_config or {}
        args.liger_kernel_config = {**config, "fused_linear_cross_entropy": False, "cross_entropy": False}
    return notes


def fit_padding(args: SFTConfig, model: nn.Module, *, flat: bool) -> list[str]:
    """Removes `pad_to_multiple_of` from our own `args` where experts would be balanced for padding; returns notes.

    Flat rows have no mask that would tell the model which tokens are padding.
    """
    if not flat or (args.pad_to_multiple_of or 1) == 1:
        return []
    if not aux_loss_coefficient(base_model(model).config.get_text_config(), args.router_aux_loss_coef):
        return []
    args.pad_to_multiple_of = None
    return ["pad_to_multiple_of has no effect: the router's auxiliary loss would count the padding of flat batches."]


def fit_ranks(args: SFTConfig, model: nn.Module) -> None:
    """Sets `ddp_find_unused_parameters=False` in our own `args` for adapters trained with checkpointing.

    transformers does so for whole models. Each pass uses the whole adapter, unless it covers a vision tower. The search
    costs a graph traversal per step, and reentrant checkpointing does not support it.

    Raises:
        ModelError: packed experts would be sharded or compiled.
        RecipeError: only the first rank has weights, and those that are tied cannot be tied again on the others.
    """
    if any(isinstance(weight, PackedWeight) for weight in model.parameters()):
        _refuse_packed(args)
    inner = base_model(model)
    adapts_text = inner is not model and not hasattr(inner.config, "vision_config")
    if args.ddp_find_unused_parameters is None and recomputes(args) and adapts_text:
        args.ddp_find_unused_parameters = False
    tied = getattr(inner.config.get_text_config(), "tie_word_embeddings", False)
    if only_first_rank_loads(args) and tied and hasattr(inner.get_output_embeddings(), "modules_to_save"):
        raise RecipeError(
            "cpu_ram_efficient_loading ties the head to the embedding again, but the adapter keeps a copy of it "
            "(modules_to_save).",
            fix="set cpu_ram_efficient_loading=False in fsdp_config, or leave the head out of modules_to_save",
        )


def try_seams(model: nn.Module, *, has_loss_func: bool, is_multimodal: bool) -> Seams:
    """The seams that this model takes; of the caller's own loss, which needs plain logits, its LoRA layers alone."""
    seams = lora_alone(model) if has_loss_func else find_seams(model)
    if not is_multimodal:
        return seams
    # Rows are padded, because honed's attention does not cover vision towers: notes on flat rows would say nothing.
    return replace(seams, flat=False, notes=lora_alone(model).notes if seams.scoring else seams.notes)


def choose_attention(
    seams: Seams, given: Any, model: nn.Module, args: SFTConfig, *, padded: bool = False
) -> tuple[Seams, bool]:
    """The seams to open, and whether batches are flat: a named attention is kept, unless packing needs honed's.

    Args:
        given: the model as the caller gave it.
        padded: whether batches must be padded unless packed.

    Raises:
        ModelError: documents are to be packed, and would see each other; or rows to be padded, which changes scores.
    """
    named = _named_attention(given, model, args)
    needs_ours = args.packing and not (named and FLAT_ATTENTION in named) and not args.skips_preparation
    if needs_ours and not seams.flat:
        raise ModelError(
            "packing=True, but documents cannot share a row in this model: " + "; ".join(seams.notes),
            fix="set packing=False",
        )
    if not args.skips_preparation:
        refuse_padding(seams, max(args.per_device_train_batch_size, args.per_device_eval_batch_size), BATCHES_OF_ONE)
    if padded and not (args.packing or args.eval_packing):
        return replace(seams, flat=False), False
    if named is None:
        return seams, seams.flat
    if FLAT_ATTENTION in named:
        return replace(seams, flat=False), True
    if needs_ours:
        note = f"attn_implementation={named!r} cannot keep packed documents apart; honed's own attention does."
        return replace(seams, notes=[*seams.notes, note]), seams.flat
    note = f"attn_implementation={named!r} is kept, so batches are padded. Leave it out for flat batches."
    return replace(seams, flat=False, notes=[*seams.notes, note]), False


@contextmanager
def checkpointing_undone(model: nn.Module) -> Iterator[None]:
    """Switches gradient checkpointing off after the block, if it was off before.

    In training mode it silently disables the cache that `generate` relies on, which then returns nonsense.
    """
    inner = base_model(model)
    before = _checkpoints(inner)
    try:
        yield
    finally:
        if not before and _checkpoints(inner):
            newer = hasattr(inner, "activation_checkpointing_disable")
            (inner.activation_checkpointing_disable if newer else inner.gradient_checkpointing_disable)()


def _checkpoints(inner: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in inner.modules())


def _named_attention(given: Any, model: nn.Module, args: SFTConfig) -> str | None:
    """The attention implementation that was chosen explicitly; None for transformers' default."""
    if not isinstance(given, nn.Module):
        named = (args.model_init_kwargs or {}).get("attn_implementation")  # type: ignore[union-attr]
        return named if named is None or isinstance(named, str) else str(base_model(model).config._attn_implementation)
    inner = base_model(model)
    current = getattr(inner.config, "_attn_implementation", None)
    by_default = "sdpa" if getattr(inner, "_supports_sdpa", False) else "eager"
    return None if current in (None, by_default, attention.NAME) else str(current)


def _with_template(tokenizer: Any, path: str) -> Any:
    if Path(path).expanduser().is_file():
        return tokenizer_with_template(tokenizer, path)
    source = load_tokenizer(path)
    if not isinstance(source.chat_template, str):
        raise RecipeError(f"chat_template_path: {path} has no chat template.", fix="name a Jinja file or another model")
    vocabulary = tokenizer.get_vocab()
    added = [token for token in source.get_added_vocab() if token in source.chat_template and token not in vocabulary]
    if added:
        raise RecipeError(
            f"The chat template of {path} needs {', '.join(sorted(added))}, which this tokenizer does not have.",
            fix=f"call clone_chat_template(model, tokenizer, {path!r}), and pass its model and tokenizer to SFTTrainer",
        )
    changed = copy.copy(tokenizer)
    changed.chat_template = source.chat_template
    return changed


def _refuse_packed(args: SFTConfig) -> None:
    if is_sharded(args):
        raise ModelError(
            "FSDP and DeepSpeed would unpack experts in 4 bits on every rank.",
            fix="leave +experts out of quantization, or start the processes with DDP (torchrun without FSDP)",
        )
    if args.torch_compile:
        raise ModelError(
            "torch_compile cannot trace everything that models do with experts in 4 bits.",
            fix="leave torch_compile out, or +experts out of quantization",
        )
