"""The time of a step: its floating-point operations divided by the machine's rate.

A weight costs two operations per token in the forward pass, two for the gradient of its input, and two for its own
gradient unless it is frozen: 6 N per token for full training, 4 N with an adapter (Kaplan et al., arXiv:2001.08361).
Attention adds 4 x heads x head size for each pair of tokens that attend, and twice that in the backward pass.
Checkpointing repeats the forward pass of its layers.
"""

from __future__ import annotations

from honed.model.plan.job import Job

# Assumed model FLOPs utilisation (arXiv:2204.02311); not measured.
EFFICIENCY = 0.4


def flops_per_step(job: Job, *, trained_share: float = 1.0) -> float:
    """Returns the operations of one optimizer step.

    Args:
        trained_share: fraction of the tokens that are trained; the head scores no others.
    """
    sizes, through = job.sizes, 1 - job.idle_layers / job.sizes.layers
    tokens = job.tokens * job.accumulation
    active = sizes.linear + (sizes.experts * sizes.chosen / sizes.routed if sizes.routed else 0)
    adapter = job.adapter.weights if job.adapter is not None else 0
    forward = 2 * (active + adapter) * tokens + 2 * _seen(job) * 2 * sizes.queries * tokens
    backward = (
        2 * (through + job.trained_share) * active * tokens
        + 4 * adapter * tokens
        + 2 * through * _seen(job) * 4 * sizes.queries * tokens
    )
    head = (6 if job.trains_head else 4) * sizes.vocabulary * sizes.hidden * tokens * trained_share
    return forward * (1 + job.layers_recomputed / sizes.layers) + backward + head


def seconds_per_step(job: Job, flops: float, *, efficiency: float = EFFICIENCY) -> float:
    """Returns the seconds of one optimizer step.

    Args:
        flops: the machine's peak operations per second.
        efficiency: fraction of the peak that is reached.
    """
    return flops_per_step(job) / (flops * efficiency)


def _seen(job: Job) -> float:
    """Tokens that a token attends to, averaged over a row and summed over layers."""
    sizes = job.sizes
    causal = job.length / 2
    if sizes.window is None or sizes.window >= job.length:
        return sizes.layers * causal
    windowed = sizes.window - sizes.window**2 / (2 * job.length)
    return sizes.full_layers * causal + (sizes.layers - sizes.full_layers) * windowed
