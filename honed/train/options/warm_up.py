"""A warm-up that never ends: 5% of one step are rounded up to that step, whose learning rate is 0."""

from __future__ import annotations

from honed.quantities import counted


def notes_on_warm_up(warm_up: int, steps: int) -> list[str]:
    """What the user of a schedule that rises from 0 for so many of all `steps` should know; nothing where it ends."""
    if not warm_up >= steps > 0:
        return []
    return [f"All of {counted(steps, 'step')} are warm-up, and the first has learning rate 0: warmup_steps=0."]
