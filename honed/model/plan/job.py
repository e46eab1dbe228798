"""What the planner plans: a model, how it is trained, and its micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from honed.model.plan.activations import FP32, Formats
from honed.model.plan.optimizers import ADAMW, Optimizer
from honed.model.plan.sizes import Adapter, Chosen, Sizes, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training job.

    Attributes:
        sizes, adapter: the model's; without an adapter all weights are trained, or those that are `chosen`.
        quantization: "nf4", "fp4" or "int8" for the frozen linear layers, "nf4+experts" to include experts, or None.
        length, rows: tokens per row, rows per micro-batch; only their product matters for memory.
        checkpointing: whether layers recompute their activations in the backward pass.
        recomputed: the number of layers, from the first, that do; None for all.
        accumulation: micro-batches per optimizer step.
        device: "cuda" or "cpu".
    """

    sizes: Sizes
    adapter: Adapter | None
    quantization: str | None
    length: int
    rows: int
    checkpointing: bool
    accumulation: int
    device: str
    formats: Formats
    optimizer: Optimizer = ADAMW
    recomputed: int | None = None
    chosen: Chosen | None = None

    @property
    def layers_recomputed(self) -> int:
        """The number of layers that recompute their activations."""
        if not self.checkpointing:
            return 0
        return self.sizes.layers if self.recomputed is None else self.recomputed

    @property
    def tokens(self) -> int:
        """Tokens per micro-batch."""
        return self.length * self.rows

    @property
    def trained(self) -> tuple[Tensors, ...]:
        if self.adapter is not None:
            return self.adapter.tensors
        return self.sizes.tensors if self.chosen is None else self.chosen.tensors

    @property
    def trains_head(self) -> bool:
        return self.adapter is None and (self.chosen is None or self.chosen.head)

    @property
    def trains_embedding(self) -> bool:
        return self.adapter is None and (self.chosen is None or self.chosen.embedding)

    @property
    def idle_layers(self) -> int:
        """The number of layers, from the first, through which no gradient passes."""
        return 0 if self.chosen is None else self.chosen.idle_layers

    @property
    def trained_format(self) -> int:
        """Bytes per trained element; peft keeps adapters in float32."""
        return self.formats.weight if self.adapter is None else FP32

    @property
    def trained_weights(self) -> int:
        """Elements of all trained weights."""
        return sum(each.size * each.count for each in self.trained)

    @property
    def trained_share(self) -> float:
        """The trained fraction of the model's own layer weights."""
        if self.adapter is not None:
            return 0.0
        matrices = sum(each.size * each.count for each in self.trained if each.hidden or len(each.shape) > 2)
        return min(1.0, matrices / (self.sizes.linear + self.sizes.experts)) if self.chosen is not None else 1.0

    @property
    def trained_bytes(self) -> int:
        """Bytes of all trained weights, and also of their gradients."""
        return self.trained_weights * self.trained_format

    @property
    def method(self) -> str:
        """One of `plan.METHODS`."""
        if self.adapter is None:
            return "full"
        return "lora" if self.quantization is None else "qlora"
