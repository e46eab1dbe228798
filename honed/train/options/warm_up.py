"""Detects a warm-up that never ends: 5% of one step is rounded up to that step, whose learning rate is 0."""

from __future__ import annotations

from honed.quantities import counted


def notes_on_warm_up(warm_up: int, steps: int) -> list[str]:
    """Returns a note if the learning rate rises from 0 in all `steps`; nothing if the warm-up ends before."""
    if not warm_up >= steps > 0:
        return []
    return [f"All of {counted(steps, 'step')} are warm-up, and the first has learning rate 0: warmup_steps=0."]
