"""How much memory a training run will take at its peak, before anything is loaded.

    job = plan.job_for("Qwen2.5-7B", method="qlora", length=512, checkpointing=True)
    plan.estimate(job).peak          # bytes
    plan.fits(job, 8 * plan.GB)      # True
    plan.largest(job, 24 * plan.GB)  # the longest row, in tokens

Three moments can be the peak of a step: the loss, when all layers have kept what they need; the first layer of the
backward pass; and its end, when all gradients exist. Each is a sum of parts (`Moment`); docs/planning.md has the
formulas, and benchmarks/plan_accuracy.py compares them with what the allocator handed out.

GB are 10^9 bytes. A card that is sold with 24 GB has 24 GiB, 7 percent more; what its driver and the desktop hold
comes out of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from honed.errors import RecipeError
from honed.model.plan_activations import FP32, Formats, saved_per_layer, saved_per_token
from honed.model.plan_shapes import find_config
from honed.model.plan_sizes import Adapter, Sizes, adapter_of, sizes_of
from honed.recipe import LoraRecipe, Recipe

GB = 10**9
METHODS = ("full", "lora", "qlora")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes per weight. In 4 bits: half a byte, an 8-bit scale for 64 weights, a float32 for 256 scales (bitsandbytes).
QUANTIZED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "fp4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
# Logits that the head computes at a time, and fewest rows of them; see honed/ops/linear_cross_entropy.py.
TILE_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
TILE_MIN_ROWS = 128
# Not measured: what a CUDA context and the workspaces of its libraries take, and what the allocator cannot use.
CUDA_CONTEXT = 600_000_000
CUDA_SLACK = 0.03
PYTHON = 500_000_000  # an interpreter with torch, transformers and peft loaded
LONGEST = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be trained, and how.

    Attributes:
        sizes, adapter: of the model; no adapter means that all weights are trained.
        quantization: "nf4", "fp4" or "int8" for the frozen linear layers, or None.
        length: tokens of a row. rows: of a micro-batch. Only their product matters for memory.
        checkpointing: activations are computed again in the backward pass,
        recomputed: but only those of so many layers, the first ones; None for all.
        accumulation: micro-batches per optimizer step.
        device: "cuda" or "cpu".
        formats: of numbers; see `formats_of`.
        state_bytes: of the optimizer for each trained number of float32; 8 for AdamW.
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
    state_bytes: float = 8.0
    recomputed: int | None = None

    @property
    def layers_recomputed(self) -> int:
        """How many layers compute their activations again."""
        if not self.checkpointing:
            return 0
        return self.sizes.layers if self.recomputed is None else self.recomputed

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.length * self.rows

    @property
    def method(self) -> str:
        """One of `METHODS`."""
        if self.adapter is None:
            return "full"
        return "lora" if self.quantization is None else "qlora"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What lies in memory at one moment of a step, in bytes.

    Attributes:
        weights: of the model, quantised or not.
        adapter: its weights.
        gradients: those that exist at that moment.
        optimizer: its states.
        activations: what layers keep for the backward pass, and weights in autocast's format.
        head: a tile of logits, gradients of hidden states, the head's weight in autocast's format.
        working: what the layer that is being computed needs besides.
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
        """Sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The moments of a step that can be its peak."""

    moments: Mapping[str, Moment]

    @property
    def peak_moment(self) -> str:
        """When most memory is in use: "loss", "backward" or "gradients"."""
        return max(self.moments, key=lambda name: self.moments[name].total)

    @property
    def parts(self) -> Moment:
        """What lies in memory then."""
        return self.moments[self.peak_moment]

    @property
    def peak(self) -> int:
        """Bytes in use then."""
        return self.parts.total

    def as_dict(self) -> dict[str, Any]:
        """For JSON, in bytes."""
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
) -> Job:
    """A job by its model's name, in the formats in which honed would load it.

    Args:
        model: a name, folder or Hub id (see `plan_shapes.find_config`), or a transformers configuration.
        method: "full", "lora" or "qlora".
        dtype: number format of the weights; None for honed's own choice.
        lora: the adapter; None for the recipe's defaults.
        quantization: of the frozen layers, for "qlora".

    Raises:
        ModelError: there is no such model, or the adapter does not fit it.
        RecipeError: an unknown method or number format, or a length below 1.
    """
    if method not in METHODS:
        raise RecipeError(f"method is {method!r}.", fix=f"known are {', '.join(METHODS)}")
    if method == "qlora" and quantization not in QUANTIZED:
        raise RecipeError(f"quantization is {quantization!r}.", fix=f"known are {', '.join(QUANTIZED)}")
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
    )


def job_of(recipe: Recipe, *, device: str = "cuda") -> Job:
    """The job that a recipe describes, with every row as long as `data.max_length`.

    gradient_checkpointing="auto" is taken for none; see `honed.model.plan_checkpointing`.

    Raises:
        ModelError: there is no such model, or the adapter does not fit it.
        RecipeError: a value cannot be planned with.
    """
    method = "full" if recipe.lora is None else "lora" if recipe.quantization is None else "qlora"
    train = recipe.train
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
    )
    recomputed = selected(job.sizes.layers) if way == "selective" else None
    return replace(job, state_bytes=state_bytes(str(train.get("optim", "adamw"))), recomputed=recomputed)


def selected(layers: int) -> int:
    """Of how many layers gradient_checkpointing="selective" computes the activations again: every second one's."""
    return (layers + 1) // 2


def quantized(job: Job, kind: str) -> Job:
    """The same job with an adapter on a quantised model.

    Raises:
        RecipeError: an unknown kind.
    """
    if kind not in QUANTIZED:
        raise RecipeError(f"quantization is {kind!r}.", fix=f"known are {', '.join(QUANTIZED)}")
    return replace(job, quantization=kind, formats=formats_of("qlora", device=job.device))


def formats_of(method: str, *, device: str, dtype: str | None = None) -> Formats:
    """The number formats that honed uses: on CUDA products in bfloat16, and weights in float32 if they are trained.

    Raises:
        RecipeError: an unknown number format.
    """
    if dtype is not None and dtype not in BYTES:
        raise RecipeError(f"dtype is {dtype!r}.", fix=f"known are {', '.join(BYTES)}")
    on_cuda = device == "cuda"
    weight = BYTES[dtype] if dtype is not None else 2 if on_cuda and method != "full" else FP32
    return Formats(weight=weight, compute=2 if on_cuda else weight, copies_attention=not on_cuda)


def state_bytes(optim: str) -> float:
    """Bytes that an optimizer of transformers' `optim` keeps for a float32 weight; 8 for those not known here."""
    known = {"8bit": 2.0, "4bit": 1.0, "adafactor": 0.0, "sgd": 0.0, "lion": 4.0}
    return next((size for word, size in known.items() if word in optim), 8.0)


def estimate(job: Job) -> Estimate:
    """Memory at the moments that can be the peak of a step, from the second step on (the optimizer has its states)."""
    base = _lasting(job)
    trained = trained_bytes(job)
    kept, one_layer = _kept(job)
    early = trained if job.accumulation > 1 else 0
    head_gradient = _head_elements(job.sizes) * job.formats.weight if job.adapter is None else 0
    moments = {
        "loss": replace(base, gradients=early, activations=kept + _autocast_weights(job), head=_head(job)),
        "backward": replace(
            base,
            gradients=max(early, head_gradient),
            activations=kept + one_layer,
            head=job.tokens * job.sizes.hidden * job.formats.compute,
            working=_working(job),
        ),
        "gradients": replace(base, gradients=trained, working=_last_working(job)),
    }
    return Estimate(moments={name: with_overhead(job, moment) for name, moment in moments.items()})


def fits(job: Job, memory: float) -> bool:
    """Whether the job stays within this many bytes."""
    return estimate(job).peak <= memory


def largest(job: Job, memory: float, *, field: str = "length") -> int:
    """The largest length (or number of rows) that fits into this many bytes; 0 if not even 1 does.

    Args:
        field: "length" or "rows"; the other stays as it is.
    """

    def ok(value: int) -> bool:
        return fits(replace(job, length=value) if field == "length" else replace(job, rows=value), memory)

    if not ok(1):
        return 0
    low, high = 1, LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ok(middle) else (low, middle - 1)
    return low


def _lasting(job: Job) -> Moment:
    """What is there all the time."""
    sizes, weight = job.sizes, job.formats.weight
    linear = sizes.linear * (weight if job.quantization is None else QUANTIZED[job.quantization])
    adapter = 0 if job.adapter is None else job.adapter.weights
    return Moment(
        weights=int((sizes.parameters - sizes.linear) * weight + linear),
        adapter=adapter * FP32,
        gradients=0,
        optimizer=int(trained_bytes(job) / FP32 * job.state_bytes),
    )


def trained_bytes(job: Job) -> int:
    """Gradients have the format of their weights; peft keeps those of adapters in float32."""
    return job.sizes.parameters * job.formats.weight if job.adapter is None else job.adapter.weights * FP32


def _kept(job: Job) -> tuple[int, int]:
    """Bytes kept by all layers and by what surrounds them; and by the last layer when it computes them again.

    Where only the first layers do so, what the others kept is gone by then, and that was more.
    """
    sizes, formats, tokens = job.sizes, job.formats, job.tokens
    layer = tokens * sum(saved_per_token(sizes, formats, job.adapter).values())
    layer += saved_per_layer(sizes, formats, job.adapter)
    normed = formats.weight if job.adapter is None else 0
    around = tokens * (sizes.hidden * (FP32 + normed) + 2 * sizes.head_size * formats.weight)
    again = job.layers_recomputed
    kept = (sizes.layers - again) * layer + again * tokens * sizes.hidden * formats.weight
    return kept + around, layer if again == sizes.layers else 0


def _autocast_weights(job: Job) -> int:
    """Autocast keeps its copies of trained weights until the forward pass ends, also where layers keep nothing."""
    if job.adapter is not None or not job.formats.casts:
        return 0
    return job.sizes.linear * job.layers_recomputed // job.sizes.layers * job.formats.compute


def _head_elements(sizes: Sizes) -> int:
    return sizes.vocabulary * sizes.hidden


def _head(job: Job) -> int:
    """A tile of logits and its float32, the hidden states and their gradient, and for a trained head its gradient."""
    sizes, formats = job.sizes, job.formats
    rows = min(job.tokens, max(TILE_MIN_ROWS, TILE_ELEMENTS[job.device] // sizes.vocabulary))
    in_float32 = FP32 if job.device == "cuda" and formats.compute < FP32 else 0
    tile = rows * sizes.vocabulary * (formats.compute + in_float32)
    hidden = 2 * job.tokens * sizes.hidden * formats.compute
    cast = _head_elements(sizes) * formats.compute if formats.casts else 0
    if job.adapter is not None:
        return tile + hidden + cast
    summed = FP32 if job.tokens > rows else formats.weight
    return tile + hidden + cast + _head_elements(sizes) * summed


def _working(job: Job) -> int:
    """Gradients inside a feed-forward layer, and what its products need: a weight's gradient or the weight itself in
    the format of the product."""
    sizes, formats = job.sizes, job.formats
    width = sizes.feed_forward * max(1, sizes.chosen)
    each = 2 * width * formats.compute + 2 * sizes.hidden * FP32
    if job.adapter is not None and formats.compute < FP32:
        each += width * FP32  # peft's cast of an adapter's input
    needs_copy = job.quantization is not None or (job.adapter is None and formats.casts)
    return job.tokens * each + (sizes.largest_linear * formats.compute if needs_copy else 0)


def _last_working(job: Job) -> int:
    """The embedding's gradient comes whole, and is added to the head's where both are one."""
    rows = job.tokens * job.sizes.hidden * FP32
    return rows + (job.sizes.embedding * job.formats.weight if job.adapter is None and job.sizes.tied else 0)


def with_overhead(job: Job, moment: Moment) -> Moment:
    """The moment with what CUDA and its allocator take of such a sum, or the interpreter."""
    moment = replace(moment, overhead=0)
    if job.device != "cuda":
        return replace(moment, overhead=PYTHON)
    return replace(moment, overhead=int(CUDA_CONTEXT + CUDA_SLACK * moment.total))


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f"{name} is {value!r}.", fix="planning needs a whole number, 1 or more")
    return value
