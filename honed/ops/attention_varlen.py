"""Flash attention over all documents of a row in one call, where the CUDA device and the installed kernels allow it.

Not measured on a GPU: the choice is tested with fakes, and the arguments follow the documentation of torch 2.11, torch
2.13 and flash-attn 2. Both kernels align causal masks and windows to the last query and the last key, which branches
with a shared prefix require. Each kind of call is tried once on the device before it is used (`works`).

Shapes: T tokens, S keys of all documents, H query heads, K key/value heads, E head size, N documents.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch

from honed.ops.attention_tiles import Rule, attend
from honed.ops.products import compute_dtype
from honed.ops.trial import succeeds

Kernel = Literal["torch", "flash_attn"]
Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
HALF = (torch.float16, torch.bfloat16)
# For head sizes from 193 to 256, only these GPUs have enough shared memory for the backward pass.
LARGE_HEADS_ON = ((8, 0), (9, 0), (10, 0))
# Of output and gradients, relative to their norm; half precision gives about 0.004, wrong alignment about 1.
NOISE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The compute capability of the CUDA device (None on other devices and ROCm), and which flash attention is
    available: torch's own, the package flash-attn."""

    capability: tuple[int, int] | None
    torch_flash: bool
    flash_attn: bool


@cache
def machine(device: torch.device) -> Machine:
    """What this device supports."""
    cuda = device.type == "cuda" and torch.version.hip is None
    return Machine(
        capability=torch.cuda.get_device_capability(device) if cuda else None,
        torch_flash=cuda and torch.backends.cuda.is_flash_attention_available(),
        flash_attn=cuda and importlib.util.find_spec("flash_attn") is not None,
    )


def choose_kernel(on: Machine, rule: Rule, *, dtype: torch.dtype, head_size: int, value_size: int) -> Kernel | None:
    """The kernel that computes exactly this attention, preferably torch's own; None if there is none.

    torch's kernel has neither dropout nor soft-capping; neither kernel has sinks.
    """
    if on.capability is None or on.capability < (8, 0) or dtype not in HALF or rule.sinks_H is not None:
        return None
    if head_size != value_size or head_size % 8 or head_size > (256 if on.capability in LARGE_HEADS_ON else 192):
        return None
    if on.torch_flash and rule.dropout == 0.0 and rule.softcap is None:
        return "torch"
    return "flash_attn" if on.flash_attn else None


def works(kernel: Kernel, device: torch.device, rule: Rule, *, dtype: torch.dtype, head_size: int) -> bool:
    """Whether the kernel gives the right output and gradients on this device; if not, a warning says so.

    It is tried once for each kind of call. Weights in float32 that train under autocast are probed in float32, so
    nothing else would try it before the first step.
    """
    return _works(kernel, device, replace(rule, dropout=0.0, window=rule.window and 3), dtype, head_size)


@cache
def _works(kernel: Kernel, device: torch.device, rule: Rule, dtype: torch.dtype, head_size: int) -> bool:
    def trial() -> None:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False), _unhooked():
            pairs = _tried(kernel, device, rule, dtype, head_size)
        if not all((found - expected).norm() <= NOISE * expected.norm() for found, expected in pairs):
            raise ArithmeticError("it gives other results")

    otherwise = f"flash attention ({kernel}) does not work on {device}, so documents are computed one by one"
    return succeeds(trial, otherwise=otherwise)


def _unhooked() -> Any:
    """Hides the hooks of checkpointing and offloading: the innermost pair alone is applied."""
    return torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved)


def _tried(
    kernel: Kernel, device: torch.device, rule: Rule, dtype: torch.dtype, head_size: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Output and gradients for two documents, the second with more keys than queries: by the kernel, and in float32."""
    queries, keys = [4, 3], [4, 6]
    shapes = [(1, heads, tokens, head_size) for heads, tokens in ((4, 7), (2, 10), (2, 10))]
    waves = (torch.arange(float(math.prod(shape)), device=device).mul_(0.7).sin_().view(shape) for shape in shapes)
    exact = [wave.to(dtype).float().requires_grad_() for wave in waves]  # no random numbers are drawn
    parts = zip(*(x.split(sizes, dim=2) for x, sizes in zip(exact, (queries, keys, keys), strict=True)), strict=True)
    expected = torch.cat([attend(q, k, v, rule) for q, k, v in parts], dim=1)
    q, k, v = rounded = [x.detach().to(dtype).requires_grad_() for x in exact]
    starts = (torch.tensor([0, a, a + b], dtype=torch.int32, device=device) for a, b in (queries, keys))
    found = attend_varlen(kernel, (q, k, v), rule, bounds=(next(starts), next(starts)), longest=(4, 6)).float()
    gradients = [gradient.float() for gradient in torch.autograd.grad(found.square().sum(), rounded)]
    expected_gradients = torch.autograd.grad(expected.square().sum(), exact)
    return list(zip([found.detach(), *gradients], [expected.detach(), *expected_gradients], strict=True))


def attend_varlen(
    kernel: Kernel, qkv: Qkv, rule: Rule, *, bounds: tuple[torch.Tensor, torch.Tensor], longest: tuple[int, int]
) -> torch.Tensor:
    """Causal attention inside each document.

    Args:
        kernel: see `choose_kernel`.
        qkv: queries (1, H, T, E), keys and values (1, K, S, E); a document's queries align with its last keys.
        bounds: int32 (N + 1,), the start of each document's queries and the end of the last; the same for the keys.
        longest: upper bounds on the number of queries and of keys per document.

    Returns:
        (1, T, H, E), in the dtype of `compute_dtype`.
    """
    dtype = compute_dtype(qkv[0])
    q_THE, k_SKE, v_SKE = (x[0].transpose(0, 1).to(dtype) for x in qkv)
    args = (*bounds, *longest)
    window = (-1 if rule.window is None else rule.window - 1, 0)
    options: dict[str, Any]
    if kernel == "flash_attn":
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

        options = {"dropout_p": rule.dropout, "softmax_scale": rule.scaling, "softcap": rule.softcap or 0.0}
        output = flash_attn_varlen_func(q_THE, k_SKE, v_SKE, *args, causal=True, window_size=window, **options)
    else:
        from torch.nn.attention import varlen

        groups = q_THE.shape[1] // k_SKE.shape[1]
        options = {"enable_gqa": True} if _takes_groups(varlen.varlen_attn) else {}
        if groups > 1 and not options:
            k_SKE, v_SKE = k_SKE.repeat_interleave(groups, dim=1), v_SKE.repeat_interleave(groups, dim=1)
        output = varlen.varlen_attn(q_THE, k_SKE, v_SKE, *args, scale=rule.scaling, window_size=window, **options)
    return output[None]


@cache
def _takes_groups(varlen_attn: Callable[..., Any]) -> bool:
    """torch 2.11 does not support grouped heads; later releases have an option."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters
