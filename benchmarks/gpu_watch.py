"""Measurements of gpu_training.py during training: time of the steps, gradients of the first step, memory."""

from __future__ import annotations

import gc
import time
from typing import Any

from data_preparation import peak_gb

ELEMENTS = 8  # compared per parameter's gradient


def watching(device: str, *, warm_up: int) -> Any:
    """A callback that times the steps after the warm-up, logs the losses of the warm-up and the last step, and samples
    the first step's gradients."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.gradients: dict[str, str] = {}
            self.seconds = 0.0
            self.started = 0.0
            self.ends: list[Any] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 0:
                self.gradients = looked_at(model)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_log = state.global_step <= warm_up or state.global_step == state.max_steps
            if state.global_step < warm_up:
                return
            self.ends.append(now(device))
            if state.global_step in (warm_up, state.max_steps):
                if device == "cuda":
                    torch.cuda.synchronize()
                self.seconds = time.perf_counter() - self.started
                self.started = time.perf_counter()

        def of_steps(self) -> list[float]:
            pairs = zip(self.ends, self.ends[1:], strict=False)
            return [round(b - a if device == "cpu" else a.elapsed_time(b) / 1e3, 5) for a, b in pairs]

    return Watch()


def now(device: str) -> Any:
    """An event in the device's stream; on a CPU the clock."""
    import torch

    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def looked_at(model: Any) -> dict[str, str]:
    """A few evenly spaced elements of every gradient, by parameter, as text."""
    import torch

    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            flat = parameter.grad.reshape(-1)
            places = (torch.arange(ELEMENTS, device=flat.device) * 2 + 1) * len(flat) // (2 * ELEMENTS)
            found[name] = " ".join(f"{value:.5g}" for value in flat[places].float().tolist())
    return found


def memory_in_use(device: str) -> tuple[float, float]:
    """Peak GB allocated and reserved; on a CPU the process's peak, twice."""
    import torch

    if device == "cpu":
        return peak_gb(), peak_gb()
    return torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
