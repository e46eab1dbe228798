"""SFTConfig: transformers' TrainingArguments and what supervised fine-tuning adds, under TRL's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from honed.data.prepare import PrepareOptions
from honed.data.stream import SHUFFLE_BUFFER
from honed.errors import RecipeError
from honed.loss.objective import Objective


@dataclass
class SFTConfig(TrainingArguments):
    """Arguments of a training run.

    Every argument of `transformers.TrainingArguments` is accepted. Names and defaults of the others are TRL's, so that
    a TRL script runs unchanged; what TRL does not have is marked "honed".

    Args:
        model_init_kwargs: keywords for `from_pretrained` when the model is given by name.
        chat_template_path: Jinja file that replaces the tokenizer's chat template.
        dataset_text_field: column of plain-text rows.
        max_length: longest row in tokens; None for no limit.
        packing: pack documents into rows of `max_length`, isolated from each other.
        packing_strategy: "bfd" (no document is torn), "bfd_split" (overlong documents are split first) or "wrapped".
        eval_packing: the same for the evaluation set; None to follow `packing`.
        assistant_only_loss: train on the assistant's turns only.
        completion_only_loss: train on completions only; None means yes where rows have prompt and completion.
        pad_to_multiple_of: where batches must be padded, pad them to a multiple of this.
        loss_type: "nll" or "dft" (see `honed.loss.objective.Objective`); "chunked_nll" is TRL's old name of "nll".
        router_aux_loss_coef: factor of a mixture-of-experts model's load-balancing loss; None for the model's own, 0
            for none.
        train_on: honed. "assistant", "last", "all" or "completion"; None to follow the two options above.
        template: honed. "auto" or "plain".
        template_arguments: honed. Further variables of the chat template.
        data_format: honed. A format's name, or "auto".
        columns: honed. What a format expects -> the rows' own name of it, such as {"messages": "chat"}.
        system: honed. System prompt for conversations that have none.
        train_roles: honed. Roles whose turns are trained.
        train_reasoning: honed. False gives the reasoning inside trained turns weight 0.
        train_tool_calls: honed. False gives the tool calls inside trained turns weight 0.
        overlong: honed. "truncate" (TRL's way, counted), "drop" or "error".
        bad_rows: honed. "error" or "drop".
        streaming: honed. Read, render and pack rows while training, in constant memory; needs max_steps.
        shuffle_buffer: honed. While streaming, rows held and shuffled at a time; 0 keeps their order.
        data_cache: honed. Keep prepared data on disk and open it when the same is asked for (see `prepared_cache`).
        token_metrics: honed. Log mean_token_accuracy and entropy; costs next to nothing.
    """

    learning_rate: float = 2e-5
    logging_steps: float = 10
    bf16: bool | None = None  # None is resolved below, by what the device can do
    dataloader_pin_memory: bool | None = None
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])

    model_init_kwargs: dict[str, Any] | None = None
    chat_template_path: str | None = None
    dataset_text_field: str = "text"
    max_length: int | None = 1024
    packing: bool = False
    packing_strategy: str = "bfd"
    eval_packing: bool | None = None
    assistant_only_loss: bool = False
    completion_only_loss: bool | None = None
    pad_to_multiple_of: int | None = None
    loss_type: str = "nll"
    router_aux_loss_coef: float | None = None

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
    token_metrics: bool = True

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = torch.cuda.is_available()  # elsewhere torch warns and does nothing
        super().__post_init__()

    def prepare_options(self, *, evaluation: bool = False) -> PrepareOptions:
        """How rows become tokens, for the training or the evaluation set.

        Raises:
            RecipeError: a value is unknown, or options exclude each other.
        """
        packing = self.eval_packing if evaluation and self.eval_packing is not None else self.packing
        return PrepareOptions(
            format=self.data_format,
            template=self.chat_template_path or self.template,
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

    def objective(self) -> Objective:
        """The loss of a token.

        Raises:
            RecipeError: an unknown loss_type, or label smoothing that does not go with it.
        """
        kind = "nll" if self.loss_type == "chunked_nll" else self.loss_type
        return Objective(kind=kind, label_smoothing=self.label_smoothing_factor)

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
