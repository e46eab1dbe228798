"""Predicts the peak memory of a training run before anything is loaded.

    job = plan.job_for("Qwen2.5-7B", method="qlora", length=512, checkpointing=True)
    plan.estimate(job).peak          # bytes
    plan.fits(job, 8 * plan.GB)      # True
    plan.largest(job, 24 * plan.GB)  # the longest row, in tokens

Five moments can be the peak of a step: the loss, when all activations are kept; the first and the last layer of the
backward pass; its end, when all gradients exist; and the optimizer's step. Each is a sum of parts (`Moment`, from
parts.py); docs/planning.md has the formulas, and benchmarks/plan_accuracy.py compares them with the allocator's peak.

GB are 10^9 bytes. A GPU sold as 24 GB has 24 GiB, 7 percent more, of which driver and desktop use a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from honed.errors import RecipeError
from honed.model.plan import parts
from honed.model.plan.activations import FP32, formats_of
from honed.model.plan.job import Job
from honed.model.plan.optimizers import DEFAULT, optimizer_for, state_bytes
from honed.model.plan.shapes import find_config
from honed.model.plan.sizes import adapter_of, chosen_of, sizes_of
from honed.recipe import PLUS_EXPERTS, LoraRecipe, Recipe

GB = 10**9
METHODS = ("full", "lora", "qlora")
# Bytes per weight. In 4 bits: half a byte, an 8-bit scale for 64 weights, a float32 for 256 scales (bitsandbytes).
QUANTIZED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "fp4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
KINDS = (*QUANTIZED, f"nf4{PLUS_EXPERTS}", f"fp4{PLUS_EXPERTS}")
# Not measured: CUDA context with its libraries' workspaces, and the allocator's fragmentation.
CUDA_CONTEXT = 600_000_000
CUDA_SLACK = 0.03
PYTHON = 500_000_000  # an interpreter with torch, transformers and peft loaded
LONGEST = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Memory use at one moment of a step, in bytes.

    Attributes:
        weights, adapter: the base model's weights, quantised or not, and the adapter's.
        gradients: the gradients that exist at that moment.
        optimizer: the optimizer's states.
        activations: kept for the backward pass, and weights in autocast's dtype.
        head: a tile of logits, gradients of hidden states, the head's weight in autocast's dtype.
        working: temporaries of the current layer.
        overhead: CUDA context and the allocator's slack; on CPU the interpreter.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int = 0
    head: int = 0
    working: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Memory at the moments of a step that can be its peak."""

    moments: Mapping[str, Moment]

    @property
    def peak_moment(self) -> str:
        """The moment with the highest memory use; see `estimate`."""
        return max(self.moments, key=lambda name: self.moments[name].total)

    @property
    def parts(self) -> Moment:
        return self.moments[self.peak_moment]

    @property
    def peak(self) -> int:
        return self.parts.total

    def as_dict(self) -> dict[str, Any]:
        """Returns the estimate for JSON, in bytes."""
        return {"peak_bytes": self.peak, "peak_moment": self.peak_moment, "parts": asdict(self.parts)}


def job_for(
    model: str | Any,
    *,
    method: str = "lora",
    length: int = 1024,
    rows: int = 1,
    checkpointing: bool = False,
    accumulation: int = 1,
    device: str = "cuda",
    dtype: str | None = None,
    lora: LoraRecipe | None = None,
    quantization: str = "nf4",
    trainable: Sequence[str] = (),
) -> Job:
    """Creates a job for a model by name, in the dtypes that honed would use.

    Args:
        model: a name, folder or Hub id (see `shapes.find_config`), or a transformers configuration.
        method: "full", "lora" or "qlora".
        dtype: the weights' dtype; None for honed's choice.
        lora: the adapter; None for the recipe's defaults.
        quantization: the frozen layers' quantisation, for "qlora".
        trainable: the weights to train, for "full"; see `honed.model.adapters.trainable.train_only`.

    Raises:
        ModelError: there is no such model, or the adapter does not fit it.
        RecipeError: an unknown method or dtype, a length below 1, or a pattern that matches nothing.
    """
    if method not in METHODS:
        raise RecipeError(f"method is {method!r}.", fix=f"known are {', '.join(METHODS)}")
    if method == "qlora":
        _refuse_unknown(quantization)
    if min(length, rows, accumulation) < 1:
        raise RecipeError("A length, a number of rows or of micro-batches is below 1.", fix="give 1 or more")
    config = find_config(model) if isinstance(model, str) else model
    return Job(
        sizes=sizes_of(config),
        adapter=None if method == "full" else adapter_of(config, asdict(lora or LoraRecipe())),
        quantization=quantization if method == "qlora" else None,
        length=length,
        rows=rows,
        checkpointing=checkpointing,
        accumulation=accumulation,
        device=device,
        formats=formats_of(method, device=device, dtype=dtype),
        chosen=chosen_of(config, trainable) if method == "full" and trainable else None,
    )


def job_of(recipe: Recipe, *, device: str = "cuda") -> Job:
    """Creates the job that a recipe describes, with every row as long as `data.max_length`.

    gradient_checkpointing="auto" counts as none; see `honed.model.plan.checkpointing`.

    Raises:
        ModelError: there is no such model, or the adapter does not fit it.
        RecipeError: the planner does not support a value.
    """
    method = "full" if recipe.lora is None else "lora" if recipe.quantization is None else "qlora"
    train, trainable = recipe.train, recipe.train.get("trainable") or ()
    way = train.get("gradient_checkpointing", False)
    job = job_for(
        recipe.model,
        method=method,
        length=_whole(recipe.data.max_length, "data.max_length"),
        rows=_whole(train.get("per_device_train_batch_size", 8), "per_device_train_batch_size"),
        checkpointing=way not in (False, None, "none", "auto"),
        accumulation=_whole(train.get("gradient_accumulation_steps", 1), "gradient_accumulation_steps"),
        device=device,
        dtype=recipe.dtype,
        lora=recipe.lora,
        quantization=recipe.quantization or "nf4",
        trainable=[trainable] if isinstance(trainable, str) else trainable,
    )
    recomputed = selected(job.sizes.layers) if way == "selective" else None
    optimizer = optimizer_for(
        str(train.get("optim", DEFAULT)),
        train.get("optim_args"),
        decays=bool(train.get("weight_decay")),
        in_backward=bool(train.get("optimizer_in_backward")),
    )
    return replace(job, optimizer=optimizer, recomputed=recomputed)


def selected(layers: int) -> int:
    """Returns the number of layers that gradient_checkpointing="selective" recomputes: half of them."""
    return (layers + 1) // 2


def quantized(job: Job, kind: str) -> Job:
    """Returns the job with an adapter on a quantised model.

    Raises:
        RecipeError: an unknown kind.
    """
    _refuse_unknown(kind)
    return replace(job, quantization=kind, formats=formats_of("qlora", device=job.device))


def estimate(job: Job) -> Estimate:
    """Predicts memory at the moments that can be the peak, once the optimizer has its states (from the second step):
    "loss", "backward" (its first layer), "last_layer" (of the backward pass), "gradients" and "step"."""
    base, working = _lasting(job), parts.working(job)
    kept, one_layer = parts.kept(job)
    early = job.trained_bytes if job.accumulation > 1 else 0
    first = early + parts.first_gradients(job)
    last = max(early, parts.last_gradients(job))
    moments = {
        "loss": replace(base, gradients=early, activations=kept + parts.autocast_weights(job), head=parts.head(job)),
        "backward": replace(
            base,
            gradients=first,
            activations=kept + (one_layer if job.layers_recomputed == job.sizes.layers else 0),
            head=job.tokens * job.sizes.hidden * job.formats.compute,
            working=working,
        ),
        "last_layer": replace(base, gradients=parts.layers_gradients(job), activations=one_layer, working=working),
        "gradients": replace(base, gradients=last, working=parts.last_working(job)),
        "step": replace(base, gradients=last, working=parts.stepping(job)),
    }
    return Estimate(moments={name: with_overhead(job, moment) for name, moment in moments.items()})


def fits(job: Job, memory: float) -> bool:
    """Whether the job fits into this many bytes."""
    return estimate(job).peak <= memory


def largest(job: Job, memory: float, *, field: str = "length") -> int:
    """Returns the largest length (or number of rows) that fits into this many bytes; 0 if not even 1 does.

    A length is at most the model's positions (`Sizes.positions`), and both are at most `LONGEST`.

    Args:
        field: "length" or "rows"; the other is kept.
    """

    def ok(value: int) -> bool:
        return fits(replace(job, length=value) if field == "length" else replace(job, rows=value), memory)

    if not ok(1):
        return 0
    low, high = 1, min(LONGEST, (job.sizes.positions if field == "length" else None) or LONGEST)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ok(middle) else (low, middle - 1)
    return low


def _lasting(job: Job) -> Moment:
    """Returns what is in memory at all moments."""
    sizes, weight = job.sizes, job.formats.weight
    kind = job.quantization or ""
    packed = sizes.linear + (sizes.experts if kind.endswith(PLUS_EXPERTS) else 0)
    in_bits = packed * (weight if job.quantization is None else QUANTIZED[kind.removesuffix(PLUS_EXPERTS)])
    adapter = 0 if job.adapter is None else job.adapter.weights
    return Moment(
        weights=int((sizes.parameters - packed) * weight + in_bits),
        adapter=adapter * FP32,
        gradients=0,
        optimizer=state_bytes(job.optimizer, job.trained, weight=job.trained_format),
    )


def with_overhead(job: Job, moment: Moment) -> Moment:
    """Adds the overhead of CUDA and its allocator, or of the interpreter."""
    moment = replace(moment, overhead=0)
    if job.device != "cuda":
        return replace(moment, overhead=PYTHON)
    return replace(moment, overhead=int(CUDA_CONTEXT + CUDA_SLACK * moment.total))


def _refuse_unknown(kind: str) -> None:
    if kind not in KINDS:
        raise RecipeError(f"quantization is {kind!r}.", fix=f"known are {', '.join(KINDS)}")


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f"{name} is {value!r}.", fix="planning needs a whole number, 1 or more")
    return value
