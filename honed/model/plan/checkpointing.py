"""How many layers compute their activations again in the backward pass: the fewest with which a step fits.

It is the first layers that do. The backward pass comes to them last, when what the others kept is gone; so the one
layer at a time that is whole again never adds to the peak.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from honed.model.plan import plan
from honed.model.plan.job import Job
from honed.model.plan.step_time import flops_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How many layers compute their activations again, and what follows from it.

    Attributes:
        job: with that many of them.
        needs: bytes of a step at its peak, as the memory that it was held against counts them.
        without: the same if no layer did so.
        fits: whether that memory suffices.
        operations: of a step, as a multiple of those without.
    """

    job: Job
    needs: int
    without: int
    fits: bool
    operations: float

    @property
    def layers(self) -> int:
        """How many of them."""
        return self.job.layers_recomputed


def with_layers(job: Job, layers: int) -> Job:
    """The same job with the first so many layers computing their activations again."""
    return replace(job, checkpointing=layers > 0, recomputed=layers if 0 < layers < job.sizes.layers else None)


def fewest(job: Job, memory: float, *, there: int = 0) -> Choice:
    """The fewest layers with which a step stays within so many bytes; all of them where none do.

    Args:
        job: its own checkpointing does not matter.
        there: bytes of the peak that are in use already, and so not in `memory`.
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
    """What of the predicted peak is there once the model is: its weights, an adapter, the libraries."""
    parts = plan.estimate(job).parts
    return parts.weights + parts.adapter + libraries_bytes(job)


def libraries_bytes(job: Job) -> int:
    """What of the predicted peak is there once this process has used the device."""
    return plan.CUDA_CONTEXT if job.device == "cuda" else plan.PYTHON
