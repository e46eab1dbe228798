"""Attaches adapters through peft, in peft's format, to plain and quantised models."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from honed.errors import HonedError, ModelError, RecipeError, first_line
from honed.model.adapters.adapter_class import trained_seeing
from honed.model.adapters.initialisation import refuse_random_pissa, refuse_unusable_start
from honed.model.adapters.loftq import start_at_residual
from honed.model.adapters.names import notes_on_names
from honed.model.adapters.targets import (
    ALL_LINEAR,
    asks_for_all,
    lost_on_loading,
    notes_on_frozen,
    unfit_layers,
    weights_left_out,
)
from honed.model.adapters.trainable import train_only
from honed.model.load.added_tokens import rows_in_adapter
from honed.model.load.chat_tokens import new_token_rows, template_tokens
from honed.model.load.load import load_model
from honed.model.load.packed_experts import PackedWeight
from honed.model.load.quantize import (
    is_quantized,
    keep_differentiable,
    notes_on_experts,
    packed_layers,
    refuse_compressed,
)

# These methods need more than token batches.
OTHER_BATCHES = {
    "CPT": "its own loss over parts of the prompt",
    "MULTITASK_PROMPT_TUNING": "a task id for every row",
    "aLoRA": "padded batches, with its invocation tokens once in every row",
}


def lora_config(
    *,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] | None = "all-linear",
    target_parameters: Sequence[str] | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    use_dora: bool = False,
    use_rslora: bool = False,
    init: str | bool = True,
    modules_to_save: Sequence[str] | None = None,
) -> Any:
    """Returns peft's configuration of LoRA (Hu et al., arXiv:2106.09685).

    Args:
        r, alpha, dropout: as in the paper.
        target_modules: names of layers; "all-linear" for all linear layers except the head, None for no layer.
        target_parameters: names of weights outside linear layers, such as "experts.gate_up_proj".
        rank_pattern, alpha_pattern: a layer's name, or a regular expression for its end -> another r or alpha.
        use_dora: train magnitude and direction separately (arXiv:2402.09353).
        use_rslora: scale by alpha / sqrt(r) (arXiv:2312.03732).
        init: peft's `init_lora_weights`: True, "gaussian", "pissa", "olora", ...; "loftq" is honed's
            implementation, for a base in 4 bits.
        modules_to_save: layers that are trained in full, such as "lm_head".
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules if isinstance(target_modules, str) else list(target_modules or []),
        target_parameters=list(target_parameters) if target_parameters else None,
        rank_pattern=dict(rank_pattern or {}),
        alpha_pattern=dict(alpha_pattern or {}),
        use_dora=use_dora,
        use_rslora=use_rslora,
        init_lora_weights=True if init == "loftq" else init,
        modules_to_save=None if modules_to_save is None else list(modules_to_save),
        task_type="CAUSAL_LM",
    )
    if init == "loftq":  # set afterwards, because peft requires scipy for its LoftQ
        config.init_lora_weights = init
    return config


def ready_to_train(
    model: Any,
    peft_config: Any = None,
    *,
    tokenizer: Any = None,
    checkpointing: bool = False,
    trainable: Sequence[str] = (),
    added: Sequence[str] = (),
) -> tuple[Any, list[str]]:
    """Prepares the model for training, with a new adapter if `peft_config` is given; returns it and notes for the user.

    Args:
        model: a transformers or peft model; peft changes it in place.
        peft_config: any of peft's methods; not changed.
        tokenizer: untrained embeddings of its chat template's tokens are trained with the adapter.
        checkpointing: whether activations are recomputed; the embedding's output must then require a gradient, because
            reentrant checkpointing would give the adapter none.
        added: tokens whose embeddings are also trained with the adapter if they are untrained.
        trainable: the model's own weights to train; see `honed.model.adapters.trainable.train_only`.

    Raises:
        ModelError: a quantised base without an adapter, nothing to train, or an adapter that does not fit.
        RecipeError: `trainable` is combined with an adapter, or a pattern in it matches nothing.
    """
    if is_quantized(model):
        refuse_compressed(model)
        keep_differentiable(model)
        if peft_config is None and not has_adapter(model):
            raise ModelError(
                "The model is quantised: its own weights cannot be trained.",
                fix="train an adapter (peft_config=LoraConfig(...); in a recipe leave lora in), or load it unquantised",
            )
    notes = notes_on_experts(model) if is_quantized(model) else []
    if trainable:
        _refuse_beside_adapter(model, peft_config)
        notes.append(train_only(model, trainable))
    if peft_config is not None and adapter_config(model) == peft_config:  # peft keeps the object that was passed
        notes += ["peft_config has no effect: the model already has this adapter."]
    elif peft_config is not None:
        asked = [] if tokenizer is None else template_tokens(tokenizer) + tokenizer.convert_tokens_to_ids(list(added))
        rows = new_token_rows(model, asked)
        fitted, told = fit_config(model, peft_config, rows)
        model = _attach(model, fitted)
        notes += told
        notes += notes_on_frozen(model) if asks_for_all(peft_config) else []
    leave_packed_alone(model)
    _refuse_what_cannot_train(model, checkpointing)
    if checkpointing and has_adapter(model):
        model.enable_input_require_grads()
    return model, notes


def attach(model: Any, peft_config: Any) -> Any:
    """Attaches a new adapter to the model; the configuration passed in is not changed.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    return _attach(model, fit_config(model, peft_config)[0])


def has_adapter(model: Any) -> bool:
    """Whether peft, or transformers through peft, has attached an adapter to the model."""
    return hasattr(model, "get_base_model") or bool(getattr(model, "_hf_peft_config_loaded", False))


def adapter_config(model: Any) -> Any:
    """Returns peft's configuration of the active adapter; None for a model without one."""
    return getattr(model, "active_peft_config", None) if hasattr(model, "get_base_model") else None


def adapter_method(model: Any) -> str:
    """Returns peft's name for the active adapter's method, such as "LORA"; "" for a model without one."""
    return str(getattr(getattr(adapter_config(model), "peft_type", None), "value", ""))


def prompt_tokens(model: Any) -> int | None:
    """Returns the number of virtual tokens that a prompt-learning adapter puts before each row; None for others."""
    config = adapter_config(model)
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else None


def fit_config(model: Any, peft_config: Any, new_rows: Sequence[int] = ()) -> tuple[Any, list[str]]:
    """Returns a copy of the configuration adapted to the model, and notes.

    Tied weights stay tied when one of them is trained in full; untrained rows of new tokens become trainable.

    Raises:
        ModelError: the method cannot be trained here, or an option lists only names that no layer has.
    """
    config = copy.deepcopy(peft_config)
    kind = getattr(config.peft_type, "value", str(config.peft_type))
    _refuse_other_batches(kind, config)
    if config.task_type is None:
        config.task_type = "CAUSAL_LM"
    if asks_for_all(config):
        config.target_modules = packed_layers(model) or ALL_LINEAR
        _exclude(config, unfit_layers(model))
    notes = notes_on_names(model, config) + refuse_unusable_start(model, config)
    whole_ends = _last_parts(_ends(model)) & _last_parts(getattr(config, "modules_to_save", None))
    if _tied(model) and whole_ends and hasattr(config, "ensure_weight_tying"):
        config.ensure_weight_tying = True
    return config, notes + _low_rank_ends(model, config) + _train_rows(model, config, kind, new_rows)


def load_with_adapter(folder: str, *, device: Any, base: Any = None, trains: bool = False, **options: Any) -> Any:
    """Loads the base model that the adapter's folder names, with the adapter.

    Args:
        base: a model to attach the adapter to, in place; None to load the one that the folder names.
        trains: whether the adapter is trained further.

    Raises:
        ModelError: the adapter or its base model cannot be loaded.
    """
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(folder)
        refuse_random_pissa(config)
        if base is None:
            name = str(config.base_model_name_or_path)
            base = _load_base(folder, name, device=device, **options)
        if (rows := rows_in_adapter(folder, base)) > base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(rows, mean_resizing=False)  # for added tokens; the adapter has all rows
        with warnings.catch_warnings():  # peft only warns of layers without weights
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(base, folder, is_trainable=trains)
    except HonedError:
        raise
    except Exception as error:  # corrupt JSON, a truncated file and wrong shapes raise different types
        raise ModelError(
            f"The adapter in {folder} could not be loaded: {first_line(error)}",
            fix="train it again, or restore its files",
        ) from None


def _load_base(folder: str, name: str, **options: Any) -> Any:
    try:
        return load_model(name, trains_all=False, with_vision=trained_seeing(folder, name), **options)
    except ModelError as error:
        raise ModelError(
            f"{folder}/adapter_config.json names the base {name}, which cannot be loaded: {error.problem}",
            fix="restore it, or correct base_model_name_or_path in that file",
        ) from None


def _attach(model: Any, fitted: Any) -> Any:
    from peft import get_peft_model

    if has_adapter(model):
        raise ModelError(
            "The model has an adapter already, and peft_config asks for another.",
            fix="pass the peft model without peft_config to continue training it, or merge it first",
        )
    wanted = copy.deepcopy(fitted)  # peft modifies its argument
    loftq = getattr(fitted, "init_lora_weights", None) == "loftq"
    if loftq:
        fitted = copy.deepcopy(fitted)
        fitted.init_lora_weights = True
    try:
        adapted = get_peft_model(model, fitted)
    except ValueError as error:
        raise ModelError(
            f"The adapter does not fit the model: {error}", fix="check r, dropout, init and target_modules"
        ) from None
    if lost := lost_on_loading(adapted):
        given = wanted.exclude_modules or ()
        if not asks_for_all(wanted) or isinstance(given, str) or set(lost) <= set(given):
            raise ModelError(
                f"peft would save but could not reload the adapter of {', '.join(lost)}.",
                fix="leave these layers out of target_modules, or name them in exclude_modules",
            )
        _exclude(wanted, lost)
        return _attach(adapted.unload(), wanted)
    if asks_for_all(wanted) and (names := weights_left_out(adapted)):
        _name_weights(wanted, names)
        return _attach(adapted.unload(), wanted)
    if loftq:
        start_at_residual(adapted)
    return adapted


def _exclude(config: Any, names: Sequence[str]) -> None:
    """Adds layers to those that the configuration excludes; a pattern of the user's is kept unchanged."""
    given = getattr(config, "exclude_modules", None) or ()
    if names and hasattr(config, "exclude_modules") and not isinstance(given, str):
        config.exclude_modules = sorted({*given, *names})


def _name_weights(config: Any, names: Sequence[str]) -> None:
    """Adds weights to those that get an adapter by name; patterns for their layers then match the weights too."""
    config.target_parameters = sorted({*(config.target_parameters or ()), *names})
    for option in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, option) or {}
        setattr(config, option, {rf"({pattern})(\.weight)?": value for pattern, value in patterns.items()})


def leave_packed_alone(model: Any) -> None:
    """Excludes packed experts from DistributedDataParallel's broadcast: all ranks have loaded the same."""
    packed = [name for name, weight in model.named_parameters() if isinstance(weight, PackedWeight)]
    if packed:
        model._ddp_params_and_buffers_to_ignore = packed


def _refuse_beside_adapter(model: Any, peft_config: Any) -> None:
    if peft_config is not None or has_adapter(model):
        raise RecipeError(
            "trainable chooses among the model's own weights, and an adapter leaves them all as they are.",
            fix="leave trainable out and name whole layers in modules_to_save, or train without an adapter (lora=null)",
        )


def _refuse_what_cannot_train(model: Any, checkpointing: bool) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "The model has no weight that would be trained.",
            fix="load the adapter with PeftModel.from_pretrained(..., is_trainable=True)",
        )
    method = adapter_method(model)
    _refuse_other_batches(method, adapter_config(model))
    if checkpointing and method == "PREFIX_TUNING":
        raise ModelError(
            "Prefix tuning passes its prefix in the key-value cache, which gradient checkpointing turns off.",
            fix="set gradient_checkpointing=False",
        )


def _refuse_other_batches(method: str, config: Any) -> None:
    if getattr(config, "alora_invocation_tokens", None):
        method = "aLoRA"
    if needs := OTHER_BATCHES.get(method):
        raise ModelError(f"{method} needs {needs}, which honed does not provide.", fix="choose another method")


def _train_rows(model: Any, config: Any, kind: str, rows: Sequence[int]) -> list[str]:
    """Adds the rows to `trainable_token_indices`, unless the adapter trains the whole layers; returns notes."""
    whole = _last_parts(getattr(config, "modules_to_save", None))
    ends = [name for name in _ends(model) if not _last_parts([name]) & whole]
    if _tied(model):  # peft makes the other layer follow
        ends = ends[:1] if len(ends) == 2 else []
    if not rows or not ends:
        return []
    if not hasattr(config, "trainable_token_indices"):
        return [f"the rows of tokens {list(rows)} are untrained, and {kind} cannot train rows: use LoRA for new tokens"]
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        return [f"the rows of tokens {list(rows)} are untrained; peft cannot train rows if the head has a bias"]
    given = config.trainable_token_indices or {}
    given = given if isinstance(given, dict) else {ends[0]: given}
    by_last = {name.rsplit(".", 1)[-1]: set(ids) for name, ids in given.items()}
    wanted = {name: by_last.get(name.rsplit(".", 1)[-1], set()) for name in ends}
    missing = sorted({row for row in rows if any(row not in ids for ids in wanted.values())})
    if not missing:
        return []
    config.trainable_token_indices = {name: sorted(ids | set(missing)) for name, ids in wanted.items()}
    return [f"the rows of {len(missing)} new tokens {missing} are untrained, and are trained with the adapter"]


def _low_rank_ends(model: Any, config: Any) -> list[str]:
    """Returns a note on adapters on tied weights: merged into the shared weight, they would change both layers."""
    names = getattr(config, "target_modules", None)
    if not _tied(model) or not names or isinstance(names, str):
        return []
    ends = sorted(_last_parts(_ends(model)) & _last_parts(names))
    return [
        f"target_modules names {name!r}, whose weight is tied to another layer's: the adapter can be served, but not "
        f"merged or exported. modules_to_save=[{name!r}] trains both and stays tied"
        for name in ends[:1]
    ]


def _last_parts(names: Iterable[str] | None) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names or ()}


def _ends(model: Any) -> list[str]:
    """Returns the names of the embedding and the head."""
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [names[id(embedding)], *([names[id(head)]] if head is not None else [])]


def _tied(model: Any) -> bool:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return head is not None and head.weight is embedding.weight
