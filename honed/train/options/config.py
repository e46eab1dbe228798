"""SFTConfig: transformers' TrainingArguments and the options of supervised fine-tuning, under TRL's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.stream import SHUFFLE_BUFFER
from honed.errors import RecipeError
from honed.loss.objective import Objective
from honed.model.load.added_tokens import ROLES
from honed.train.options.deepspeed import need_deepspeed
from honed.train.options.legacy import takes_old_names, tell_of
from honed.train.options.optim import Own, known_optimizer
from honed.train.options.refusals import refusals_of_arguments

OLD_VALUES = {  # option -> value in older releases of TRL -> today's value
    "packing_strategy": {"bfd-requeue": "bfd_split", "ffd": "bfd"},
    "loss_type": {"chunked_nll": "nll"},
    "optim": {"adamw_hf": "adamw_torch"},  # transformers removed its own AdamW in favour of torch's
}
# Options that scripts read from YAML, where 2e-5 without a point is text.
_NUMBERS = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "warmup_steps"),
    "num_train_epochs",
)


@takes_old_names
@dataclass
class SFTConfig(TrainingArguments):
    """Arguments of a training run.

    Every argument of `transformers.TrainingArguments` is accepted. The others have TRL's names and defaults, so that a
    TRL script runs unchanged; those that TRL does not have are marked "honed". Old names are accepted too (see
    `legacy`) and listed in `old_names`.

    Args:
        model_init_kwargs: keyword arguments for `from_pretrained` if the model is given by name.
        trust_remote_code: allow models and tokenizers to run their own code when they are loaded.
        router_aux_loss_coef: weight of a mixture-of-experts model's load-balancing loss; None for the model's default.
        chat_template_path: replaces the tokenizer's chat template: a Jinja file, or a model whose template to use.
        eos_token: the token that ends turns and texts, if not the tokenizer's.
        pad_token: the token that pads batches, if not the tokenizer's.
        bos_token: honed. The token that begins texts, if not the tokenizer's.
        unk_token: honed. The token for what the vocabulary lacks, if not the tokenizer's.
        add_tokens: honed. Tokens to add to the vocabulary; text that spells one is encoded as this token. Their
            embeddings start as the mean of the others, and are also trained if there is an adapter.
        dataset_text_field: the column of plain-text rows. As in TRL, it takes precedence over the columns of other
            formats, except messages (`role` and `content`, or ShareGPT's `from` and `value`) and prompt+completion.
            None (honed): `text`, after all other formats.
        dataset_kwargs: {"skip_prepare_dataset": True} passes rows to the collator unchanged.
        dataset_num_proc: processes that prepare the rows; the result does not depend on it. None for one.
        max_length: maximum number of tokens per row; None for no limit. The default is lowered to the limits of the
            tokenizer and the model.
        truncation_mode: only "keep_start".
        shuffle_dataset: shuffle the rows once, before packing.
        packing: pack documents into rows of `max_length`; they do not attend to each other.
        packing_strategy: "bfd" (keeps documents whole), "bfd_split" (splits overlong documents first) or "wrapped".
        padding_free: accepted; batches have no padding whenever the model supports it.
        pad_to_multiple_of: pad batches to a multiple of this; for flat ones, their total number of tokens, so that the
            most that one can hold gives all of them the same shape. "auto": to the longest row, and flat ones not.
        eval_packing: `packing` for the evaluation set; None for the same as `packing`.
        completion_only_loss: train on completions only; None means yes for rows with a prompt and a completion.
        assistant_only_loss: train on the assistant's turns only.
        loss_type: "nll", "dft" (arXiv:2508.05629) or "eaft" (arXiv:2601.02151); "chunked_nll" is TRL's old name
            for "nll".
        activation_offloading: keep activations in host memory between the forward and backward pass.
        gradient_checkpointing: True or False as in TRL. honed: "full" and "none" mean the same; "selective" checkpoints
            the first half of the layers; "auto" the fewest with which the longest micro-batch is predicted to fit.
        memory_budget: honed. Memory that "auto" may plan with for the whole process, in GB; None for what is free.
        share_prefixes: honed. Compute the common beginning of a batch's documents once; packing then puts such
            documents together. "auto": if the model and its dropout allow it; True: raise an error if they do not.
        train_on: honed. "assistant", "last", "all" or "completion"; None to follow `completion_only_loss` and
            `assistant_only_loss`.
        template: honed. "auto" or "plain".
        template_arguments: honed. Additional variables for the chat template.
        data_format: honed. The name of a format, or "auto".
        columns: honed. A format's column name -> the name in the rows, such as {"messages": "chat"}.
        system: honed. System prompt for conversations without one.
        train_roles: honed. Roles whose turns are trained.
        train_reasoning: honed. False gives the reasoning in trained turns weight 0.
        train_tool_calls: honed. False gives the tool calls in trained turns weight 0.
        overlong: honed. What to do with rows longer than max_length: "truncate" (as TRL does, but counted), "drop",
            "split" (each part becomes a document) or "error".
        bad_rows: honed. What to do with unusable rows: "error" or "drop".
        streaming: honed. Read, render and pack rows during training, in constant memory; needs max_steps.
        shuffle_buffer: honed. Number of rows that streaming holds and shuffles at a time; 0 keeps their order.
        data_cache: honed. Keep prepared data on disk and reuse it for the same data and options (see `honed cache`).
        tokens_per_step: honed. Approximate number of tokens per optimizer step, which determines its rows: the same on
            any number of ranks, with nearly equal shares. A micro-batch holds at most per_device_train_batch_size *
            max_length tokens, which determines their number. Not in the plain engine.
        sequence_parallel_size: honed. Number of neighbouring ranks that share each row: each computes a slice of its
            tokens and, in attention, some of the heads for all tokens. For rows too long for one GPU; the steps are the
            same as with one process.
        optimizer_in_backward: honed. AdamW updates each weight during the backward pass and frees its gradient, to save
            memory in full fine-tuning; without gradient clipping, accumulation and several ranks.
        fp8: honed. Linear layers multiply in float8 (torchao), on GPUs that support it. "emulate": anywhere, slowly.
        image_folder: honed. Folder that image paths are relative to and must stay in; None for the data file's folder.
        image_max_pixels: honed. Larger images are reduced to this many pixels before the processor gets them.
        freeze_vision: honed. Do not train the vision tower.
        trainable: honed. Regular expressions for the names of the parameters to train; all others are frozen, and so
            are those that match an expression with "!" in front. For training without an adapter.
        learning_rates: honed. Regular expression for parameter names -> factor for their learning rate, such as
            {"embed_tokens": 0.1}, or LoRA+: {"lora_B": 16}. The first match counts.
        early_stopping_patience: honed. End the run after this many evaluations in a row in which metric_for_best_model
            does not improve; needs eval_strategy and load_best_model_at_end. Not in the plain engine.
        early_stopping_threshold: honed. Smaller improvements do not count.
        token_metrics: honed. Log mean_token_accuracy and entropy, at almost no cost.
        max_not_finite_steps: honed. Steps with a loss or gradient that is not finite are skipped; more end the run.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [  # given as JSON on a command line
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "dataset_kwargs",
        "template_arguments",
        "columns",
        "learning_rates",
    ]

    # TRL's defaults that differ from transformers'
    learning_rate: float = 2e-5
    logging_steps: float = 10
    gradient_checkpointing: bool | str = True
    bf16: bool | None = None  # None is resolved below, by what the device supports
    dataloader_pin_memory: bool | None = None
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])

    model_init_kwargs: dict[str, Any] | str | None = None
    trust_remote_code: bool = False
    router_aux_loss_coef: float | None = None
    chat_template_path: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    bos_token: str | None = None
    unk_token: str | None = None
    add_tokens: list[str] | str = field(default_factory=list)
    dataset_text_field: str | None = "text"
    dataset_kwargs: dict[str, Any] | str | None = None
    dataset_num_proc: int | None = None
    max_length: int | None = 1024
    truncation_mode: str = "keep_start"
    shuffle_dataset: bool = False
    packing: bool = False
    packing_strategy: str = "bfd"
    padding_free: bool = False
    pad_to_multiple_of: int | str | None = "auto"
    eval_packing: bool | None = None
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    loss_type: str = "nll"
    activation_offloading: bool = False

    share_prefixes: bool | str = False
    train_on: str | None = None
    template: str = "auto"
    template_arguments: dict[str, Any] = field(default_factory=dict)
    data_format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    system: str | None = None
    train_roles: list[str] = field(default_factory=lambda: ["assistant"])
    train_reasoning: bool = True
    train_tool_calls: bool = True
    overlong: str = "truncate"
    bad_rows: str = "error"
    streaming: bool = False
    shuffle_buffer: int = SHUFFLE_BUFFER
    data_cache: bool = False
    tokens_per_step: int | None = None
    sequence_parallel_size: int = 1
    optimizer_in_backward: bool = False
    memory_budget: float | None = None
    fp8: bool | str = False
    image_folder: str | None = None
    image_max_pixels: int | None = None
    freeze_vision: bool = False
    trainable: list[str] | str = field(default_factory=list)
    learning_rates: dict[str, float] = field(default_factory=dict)
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    token_metrics: bool = True
    max_not_finite_steps: int = 5

    def __post_init__(self) -> None:
        on_cuda = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            native = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
            self.bf16 = not self.fp16 and native
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = on_cuda  # elsewhere torch warns and does nothing
        self.gradient_checkpointing = checkpointing_of(self.gradient_checkpointing)
        if getattr(self, "activation_checkpointing", False) is None:  # the newer name, which transformers prefers
            self.activation_checkpointing = self.gradient_checkpointing
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        elif hasattr(self, "activation_checkpointing"):
            self.activation_checkpointing = checkpointing_of(self.activation_checkpointing)
        for name, values in OLD_VALUES.items():
            value = getattr(self, name)
            if value in values:
                setattr(self, name, values[value])
                tell_of(self, f"{name}={value!r} is called {values[value]!r} now.")
        for name in ("trainable", "add_tokens"):
            value = getattr(self, name)
            setattr(self, name, [value] if isinstance(value, str) else list(value or []))
        for name in _NUMBERS:
            setattr(self, name, _number(name, getattr(self, name)))
        self.pad_to_multiple_of = _multiple(self.pad_to_multiple_of)
        optim = known_optimizer(self.optim)
        self.optim: Any = TrainingArguments.default_optim if isinstance(optim, Own) else optim
        need_deepspeed(self.deepspeed)
        with refusals_of_arguments():
            super().__post_init__()  # accepts transformers' own optimizers only
        self.optim = optim

    @property
    def device(self) -> torch.device:
        """The device of this process. The CPU has no index: transformers 5.17 would load checkpoints to `cpu:1` on a
        second rank, which `torch.load` does not support."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def data_parallel_size(self) -> int:
        """The number of ranks with different rows; ranks that share their rows count as one."""
        return self.world_size // self.sequence_parallel_size

    @property
    def data_parallel_rank(self) -> int:
        """The index of this rank, or of its group, among those of `data_parallel_size`."""
        return self.process_index // self.sequence_parallel_size

    @property
    def order_seed(self) -> int:
        """The seed of the rows' order."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def skips_preparation(self) -> bool:
        """Whether the collator gets unprepared rows."""
        return isinstance(self.dataset_kwargs, dict) and bool(self.dataset_kwargs.get("skip_prepare_dataset"))

    @property
    def token_options(self) -> dict[str, Any]:
        """Keyword arguments for `honed.model.load.added_tokens.with_tokens`."""
        return {"roles": {role: getattr(self, role) for role in ROLES}, "added": self.add_tokens}

    def prepare_options(self, *, evaluation: bool = False) -> PrepareOptions:
        """Returns the options that prepare the training or the evaluation set.

        Raises:
            RecipeError: a value is unknown, or options are incompatible.
        """
        packing = self.eval_packing if evaluation and self.eval_packing is not None else self.packing
        return PrepareOptions(
            format=self.data_format,
            template=self._template(),
            template_arguments=self.template_arguments,
            columns=self.columns,
            system=self.system,
            train_roles=tuple(self.train_roles),
            train_reasoning=self.train_reasoning,
            train_tool_calls=self.train_tool_calls,
            train_on=self._train_on(),
            max_length=self.max_length,
            overlong=self.overlong,
            packing=packing,
            packing_strategy=self.packing_strategy,
            bad_rows=self.bad_rows,
            text_field=self.dataset_text_field,
        )

    def _template(self) -> str:
        """The template; another model's is already in the tokenizer (see `start.make_tokenizer`)."""
        path = self.chat_template_path
        return path if path is not None and Path(path).expanduser().is_file() else self.template

    def objective(self) -> Objective:
        """Returns the loss per token.

        Raises:
            RecipeError: loss_type is unknown, or does not support label smoothing.
        """
        return Objective(kind=self.loss_type, label_smoothing=self.label_smoothing_factor)

    def _train_on(self) -> str:
        if self.train_on is not None:
            if self.assistant_only_loss and self.train_on not in ("assistant", "last"):
                raise RecipeError(
                    f"assistant_only_loss=True and train_on={self.train_on!r} are mutually exclusive.",
                    fix="set one of them",
                )
            return self.train_on
        if self.assistant_only_loss:
            return "assistant"
        return "all" if self.completion_only_loss is False else "completion"


def checkpointing_of(value: bool | str) -> bool | str:
    """Converts a value from a script, a recipe or a command line to True, False, "selective" or "auto".

    Raises:
        RecipeError: the value is something else.
    """
    words: dict[str, bool | str] = {"full": True, "true": True, "none": False, "false": False}
    words |= {"selective": "selective", "auto": "auto"}
    found = words.get(str(value).lower())
    if found is None:
        raise RecipeError(
            f"gradient_checkpointing is {value!r}.", fix="choose one of: true, false, none, selective, full, auto"
        )
    return found


def _number(name: str, value: Any) -> Any:
    """Converts text to a number, and `max_grad_norm=None` to 0 (no clipping); other values are returned unchanged."""
    if name == "max_grad_norm" and value is None:
        return 0.0
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise RecipeError(f"{name} is {value!r}.", fix="set a number") from None


def _multiple(value: int | str | None) -> int | None:
    """Converts pad_to_multiple_of, which is text on a command line; None for "auto"."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("auto", "none", "null"):
        return None
    if not value.isdigit():
        raise RecipeError(f"pad_to_multiple_of is {value!r}.", fix="set a whole number, or 'auto'")
    return int(value)
