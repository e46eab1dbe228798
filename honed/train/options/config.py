"""SFTConfig: transformers' TrainingArguments and what supervised fine-tuning adds, under TRL's names."""

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

OLD_VALUES = {  # option -> value that it had in older releases of TRL -> the same today
    "packing_strategy": {"bfd-requeue": "bfd_split", "ffd": "bfd"},
    "loss_type": {"chunked_nll": "nll"},
    "optim": {"adamw_hf": "adamw_torch"},  # transformers' own AdamW, which it dropped for torch's
}


@takes_old_names
@dataclass
class SFTConfig(TrainingArguments):
    """Arguments of a training run.

    Every argument of `transformers.TrainingArguments` is accepted. Names and defaults of the others are TRL's, so that
    a TRL script runs unchanged; what TRL does not have is marked "honed". Old names are taken too (see `legacy`), and
    told of in `old_names`.

    Args:
        model_init_kwargs: keywords for `from_pretrained` when the model is given by name.
        trust_remote_code: let models and tokenizers run code of their own when they are loaded.
        router_aux_loss_coef: weight of the load-balancing loss of mixture-of-experts models; None for the model's own.
        chat_template_path: what replaces the tokenizer's chat template: a Jinja file, or a model whose template it is.
        eos_token: token that ends turns and texts, instead of the tokenizer's.
        pad_token: token that fills up padded batches, instead of the tokenizer's.
        bos_token, unk_token: honed. The same for what begins texts, and for what the vocabulary lacks.
        add_tokens: honed. Tokens to add to the vocabulary: texts that spell one hold this token. Their embeddings begin
            as the mean of the others, and are trained, with an adapter, too.
        dataset_text_field: column of plain-text rows. As in TRL its text comes before the columns of other formats, but
            for messages (`role` and `content`, or ShareGPT's `from` and `value`) and prompt+completion. None (honed):
            `text`, behind all others.
        dataset_kwargs: {"skip_prepare_dataset": True} hands rows to the collator as they are.
        dataset_num_proc: processes that prepare the rows; the result is the same. None for one.
        max_length: longest row in tokens; None for no limit. The default is lowered to the limits of
            tokenizer and model.
        truncation_mode: "keep_start", the only one.
        shuffle_dataset: shuffle the rows once, before they are packed.
        packing: pack documents into rows of `max_length`, isolated from each other.
        packing_strategy: "bfd" (no document is torn), "bfd_split" (overlong documents are split first) or "wrapped".
        padding_free: accepted; batches have no padding wherever the model allows it.
        pad_to_multiple_of: pad batches to a multiple of this. Of flat ones the sum of tokens is meant, so that the most
            that a batch can hold gives all the same shape. "auto": flat ones not at all, others to the longest row.
        eval_packing: the same as `packing` for the evaluation set; None to follow it.
        completion_only_loss: train on completions only; None means yes where rows have prompt and completion.
        assistant_only_loss: train on the assistant's turns only.
        loss_type: "nll", "dft" (arXiv:2508.05629) or "eaft" (arXiv:2601.02151); "chunked_nll" is TRL's old word
            for "nll".
        activation_offloading: keep activations in the host's memory between forward and backward.
        gradient_checkpointing: True or False as in TRL. honed: "full" and "none" are the same; "selective" is for the
            first half of the layers; "auto" for the fewest with which the longest micro-batch fits, by prediction.
        memory_budget: honed. What "auto" may plan with for the whole process, in GB; None for what is free.
        share_prefixes: honed. What documents of a batch have in common at their beginning is computed once; packing
            then puts such documents together. "auto": where the model and its dropout allow it; True: or stop.
        train_on: honed. "assistant", "last", "all" or "completion"; None to follow the two options above.
        template: honed. "auto" or "plain".
        template_arguments: honed. Further variables of the chat template.
        data_format: honed. A format's name, or "auto".
        columns: honed. What a format expects -> the rows' own name of it, such as {"messages": "chat"}.
        system: honed. System prompt for conversations that have none.
        train_roles: honed. Roles whose turns are trained.
        train_reasoning: honed. False gives the reasoning inside trained turns weight 0.
        train_tool_calls: honed. False gives the tool calls inside trained turns weight 0.
        overlong: honed. What happens to rows longer than max_length: "truncate" (TRL's way, counted), "drop", "split"
            (parts, each a document of its own) or "error".
        bad_rows: honed. "error" or "drop".
        streaming: honed. Read, render and pack rows while training, in constant memory; needs max_steps.
        shuffle_buffer: honed. While streaming, rows held and shuffled at a time; 0 keeps their order.
        data_cache: honed. Keep prepared data on disk and open it when the same is asked for (`honed cache` lists it).
        tokens_per_step: honed. Tokens of an optimizer step, about: its rows are chosen by them, the same on any number
            of ranks, which get nearly equal shares. A micro-batch holds at most per_device_train_batch_size *
            max_length of them; how many there are follows. The plain engine does not have it.
        sequence_parallel_size: honed. So many neighbouring ranks share each row: each computes a slice of its tokens,
            and in attention some heads of all tokens. For rows too long for one GPU; steps are those of one process.
        optimizer_in_backward: honed. AdamW updates each weight during the backward pass and frees its gradient, for
            full fine-tuning where memory is short; without clipping, accumulation and several ranks.
        fp8: honed. Linear layers multiply in float8 (torchao); for GPUs that have it. "emulate": anywhere, slowly.
        image_folder: honed. Where paths of images start, and out of which none may lead; None for the data file's own.
        image_max_pixels: honed. Larger images are shrunk to this many pixels before the processor gets them.
        freeze_vision: honed. Leave the vision tower as it is.
        trainable: honed. Regular expressions for the names of the parameters to train, the rest is frozen; one with "!"
            before it freezes what it finds. For training without an adapter.
        learning_rates: honed. Regular expression for the names of parameters -> factor for their learning rate, such as
            {"embed_tokens": 0.1}, or LoRA+: {"lora_B": 16}. The first that fits counts.
        early_stopping_patience: honed. So many evaluations in a row without a better metric_for_best_model end the run;
            needs eval_strategy and load_best_model_at_end. The plain engine does not have it.
        early_stopping_threshold: honed. Smaller improvements do not count.
        token_metrics: honed. Log mean_token_accuracy and entropy; costs next to nothing.
        max_not_finite_steps: honed. Steps whose loss or gradient is not finite are skipped; after more, the run ends.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [  # which a command line gives as JSON
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "dataset_kwargs",
        "template_arguments",
        "columns",
        "learning_rates",
    ]

    # TRL's defaults, where transformers has others
    learning_rate: float = 2e-5
    logging_steps: float = 10
    gradient_checkpointing: bool | str = True
    bf16: bool | None = None  # None is resolved below, by what the device can do
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
        if getattr(self, "activation_checkpointing", False) is None:  # its newer name, which transformers prefers
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
        self.pad_to_multiple_of = _multiple(self.pad_to_multiple_of)
        optim = known_optimizer(self.optim)
        self.optim: Any = TrainingArguments.default_optim if isinstance(optim, Own) else optim
        need_deepspeed(self.deepspeed)
        with refusals_of_arguments():
            super().__post_init__()  # which takes transformers' own optimizers only
        self.optim = optim

    @property
    def device(self) -> torch.device:
        """Where this process trains. A rank's CPU bears no index: to `cpu:1`, which transformers 5.17 then asks for,
        `torch.load` can bring no checkpoint."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def data_parallel_size(self) -> int:
        """How many ranks, or groups of ranks that share their rows, have rows of their own."""
        return self.world_size // self.sequence_parallel_size

    @property
    def data_parallel_rank(self) -> int:
        """This rank's, or its group's, number among those."""
        return self.process_index // self.sequence_parallel_size

    @property
    def skips_preparation(self) -> bool:
        """Whether the collator gets the rows as they are."""
        return isinstance(self.dataset_kwargs, dict) and bool(self.dataset_kwargs.get("skip_prepare_dataset"))

    @property
    def tokens(self) -> dict[str, Any]:
        """Keywords of `honed.model.load.added_tokens.with_tokens`."""
        return {"roles": {role: getattr(self, role) for role in ROLES}, "added": self.add_tokens}

    @property
    def chosen(self) -> dict[str, Any]:
        """Keywords of `honed.model.adapters.adapters.ready_to_train`."""
        return {"trainable": self.trainable, "added": self.add_tokens}

    def prepare_options(self, *, evaluation: bool = False) -> PrepareOptions:
        """How rows become tokens, for the training or the evaluation set.

        Raises:
            RecipeError: a value is unknown, or options exclude each other.
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
        """The template of another model stands in the tokenizer already (see `start.make_tokenizer`)."""
        path = self.chat_template_path
        return path if path is not None and Path(path).expanduser().is_file() else self.template

    def objective(self) -> Objective:
        """The loss of a token.

        Raises:
            RecipeError: an unknown loss_type, or label smoothing that does not go with it.
        """
        return Objective(kind=self.loss_type, label_smoothing=self.label_smoothing_factor)

    def _train_on(self) -> str:
        if self.train_on is not None:
            if self.assistant_only_loss and self.train_on not in ("assistant", "last"):
                raise RecipeError(
                    f"assistant_only_loss=True and train_on={self.train_on!r} exclude each other.",
                    fix="set one of them",
                )
            return self.train_on
        if self.assistant_only_loss:
            return "assistant"
        return "all" if self.completion_only_loss is False else "completion"


def checkpointing_of(value: bool | str) -> bool | str:
    """True, False, "selective" or "auto", of whatever a script, a recipe or a command line gives.

    Raises:
        RecipeError: another word.
    """
    words: dict[str, bool | str] = {"full": True, "true": True, "none": False, "false": False}
    words |= {"selective": "selective", "auto": "auto"}
    found = words.get(str(value).lower())
    if found is None:
        raise RecipeError(
            f"gradient_checkpointing is {value!r}.", fix="choose one of: true, false, none, selective, full, auto"
        )
    return found


def _multiple(value: int | str | None) -> int | None:
    """A command line gives a text."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("auto", "none", "null"):
        return None
    if not value.isdigit():
        raise RecipeError(f"pad_to_multiple_of is {value!r}.", fix="set a whole number, or 'auto'")
    return int(value)
