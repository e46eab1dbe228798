"""Chooses how many layers recompute their activations: the fewest with which a step fits into memory.

These are the first layers. The backward pass reaches them last, when the other layers' activations have been freed, so
a recomputed layer never adds to the peak.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from honed.model.plan import plan
from honed.model.plan.job import Job
from honed.model.plan.step_time import flops_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The number of layers that recompute their activations, and its consequences.

    Attributes:
        job: the job with this number of layers.
        needs: peak bytes of a step, minus what is already in use.
        without: the same if no layer recomputes.
        fits: whether the memory suffices.
        operations: operations of a step, as a multiple of those without recomputation.
    """

    job: Job
    needs: int
    without: int
    fits: bool
    operations: float

    @property
    def layers(self) -> int:
        return self.job.layers_recomputed


def with_layers(job: Job, layers: int) -> Job:
    """Returns the job with the first `layers` layers recomputing their activations."""
    return replace(job, checkpointing=layers > 0, recomputed=layers if 0 < layers < job.sizes.layers else None)


def fewest(job: Job, memory: float, *, there: int = 0) -> Choice:
    """Chooses the fewest layers with which a step fits into `memory` bytes; all of them if it does not fit.

    Args:
        job: its `checkpointing` is ignored.
        there: bytes of the peak that are already in use, and so not part of `memory`.
    """
    without = with_layers(job, 0)
    for layers in range(job.sizes.layers + 1):
        tried = with_layers(job, layers)
        needs = plan.estimate(tried).peak - there
        if needs <= memory:
            break
    return Choice(
        job=tried,
        needs=needs,
        without=plan.estimate(without).peak - there,
        fits=needs <= memory,
        operations=flops_per_step(tried) / flops_per_step(without),
    )


def loaded_bytes(job: Job) -> int:
    """The part of the predicted peak that is in use once the model is loaded."""
    parts = plan.estimate(job).parts
    return parts.weights + parts.adapter + libraries_bytes(job)


def libraries_bytes(job: Job) -> int:
    """The part of the predicted peak that is in use once this process has used the device."""
    return plan.CUDA_CONTEXT if job.device == "cuda" else plan.PYTHON
