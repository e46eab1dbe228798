"""The parts of a step's memory at each moment, in bytes; `plan.estimate` sums them.

The formulas are in docs/planning.md; tests/model/plan/test_plan_parts.py counts the tensors of real steps.
"""

from __future__ import annotations

from honed.model.plan.activations import FP32, saved_per_layer, saved_per_token
from honed.model.plan.job import Job
from honed.model.plan.optimizers import step_bytes
from honed.recipe import PLUS_EXPERTS

# Copies of the constants in honed/ops/linear_cross_entropy.py, which imports torch.
TILE_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
TILE_MIN_ROWS = 128
TILE_MIN_ROWS_TRAINED = {"cpu": 128, "cuda": 1024}


def kept(job: Job) -> tuple[int, int]:
    """Returns the bytes of activations kept in total, and by one layer that does not recompute."""
    sizes, formats, tokens = job.sizes, job.formats, job.tokens
    layer = tokens * sum(saved_per_token(sizes, formats, job.adapter).values())
    layer += saved_per_layer(sizes, formats, job.adapter)
    normed = formats.weight if job.adapter is None else 0
    around = tokens * (sizes.hidden * (FP32 + normed) + 2 * sizes.head_size * formats.weight)
    again, whole = (max(0, n - job.idle_layers) for n in (job.layers_recomputed, sizes.layers))
    return (whole - again) * layer + again * tokens * sizes.hidden * formats.weight + around, layer


def autocast_weights(job: Job) -> int:
    """Autocast's copies of the trained weights of recomputed layers, which live until the forward pass ends."""
    if job.adapter is not None or not job.formats.casts:
        return 0
    return int(job.sizes.linear * job.trained_share) * job.layers_recomputed // job.sizes.layers * job.formats.compute


def head(job: Job) -> int:
    """A tile of logits, the hidden states and their gradient, and a trained head's gradient.

    In half precision the head's gradient is a product and its float32 sum. The tile has no float32 copy: one kernel
    scores it on CUDA, and on CPU the copy is made block by block.
    """
    sizes, formats = job.sizes, job.formats
    least = TILE_MIN_ROWS_TRAINED[job.device] if job.trains_head else TILE_MIN_ROWS
    rows = min(job.tokens, max(least, TILE_ELEMENTS[job.device] // sizes.vocabulary))
    tile = rows * sizes.vocabulary * formats.compute
    hidden = 2 * job.tokens * sizes.hidden * formats.compute
    cast = _head_elements(job) * formats.compute if formats.casts else 0
    if not job.trains_head:
        return tile + hidden + cast
    in_two = formats.compute < FP32 and (formats.casts or job.tokens > rows)
    return tile + hidden + cast + _head_elements(job) * (formats.compute + (FP32 if in_two else 0))


def working(job: Job) -> int:
    """Gradients inside a feed-forward layer, and a weight's gradient or its cast copy."""
    sizes, formats = job.sizes, job.formats
    width = sizes.feed_forward * max(1, sizes.chosen)
    each = 2 * width * formats.compute + 2 * sizes.hidden * FP32
    if job.adapter is not None and formats.compute < FP32:
        each += width * FP32  # peft's cast of an adapter's input
    needs_copy = job.quantization is not None or (job.adapter is None and formats.casts)
    unpacked = (job.quantization or "").endswith(PLUS_EXPERTS)
    # Two of the three matrices of a layer's experts are in one weight.
    copied = max(sizes.largest_linear, 2 * sizes.experts // (3 * sizes.layers) if unpacked else 0)
    return job.tokens * each + (copied * formats.compute if needs_copy else 0)


def first_gradients(job: Job) -> int:
    """The head's gradient, on CPU in half precision with a scaled copy; if weights are updated in the backward pass,
    also the largest layer's, because a tied head's gradient lives until the end."""
    if job.adapter is not None:
        return 0
    size = _head_elements(job) if job.trains_head else 0
    layer = job.sizes.largest_linear if job.optimizer.in_backward else 0
    scaled = size if job.device == "cpu" and job.formats.compute < FP32 else 0
    return max(size + scaled, size + layer if job.sizes.tied else layer) * job.formats.weight


def layers_gradients(job: Job) -> int:
    """Gradients during the last layer of the backward pass: all but its own and an untied embedding's."""
    if job.optimizer.in_backward:
        return first_gradients(job)
    if job.adapter is not None or job.chosen is not None or job.accumulation > 1:
        return job.trained_bytes
    sizes = job.sizes
    own = (sizes.linear + sizes.experts) // sizes.layers
    return job.trained_bytes - (own + (0 if sizes.tied else sizes.embedding)) * job.formats.weight


def last_gradients(job: Job) -> int:
    """All gradients; if weights are updated in the backward pass, the largest, the embedding's."""
    if not job.optimizer.in_backward:
        return job.trained_bytes
    return max(each.size for each in job.trained) * job.trained_format


def last_working(job: Job) -> int:
    """Additional matrices for the embedding's gradient: one to add it to earlier micro-batches', and two to add it to a
    tied head's, unless honed adds its rows in place (`honed.loss.tied_embedding`)."""
    rows = job.tokens * job.sizes.hidden * FP32
    if not job.trains_embedding:
        return rows
    own_rows = job.sizes.plain_embedding and job.formats.weight == FP32
    besides = 2 * (job.sizes.tied and not own_rows) + (job.accumulation > 1)
    return rows + besides * job.sizes.embedding * job.formats.weight


def stepping(job: Job) -> int:
    """Temporaries of the optimizer's step."""
    return step_bytes(job.optimizer, job.trained, weight=job.trained_format, device=job.device)


def _head_elements(job: Job) -> int:
    return job.sizes.vocabulary * job.sizes.hidden
