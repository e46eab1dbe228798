"""Which kernel is chosen, and what it is given: kernels are stood in for by loops, for no GPU is needed here."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen
from torch.utils.checkpoint import checkpoint

from honed.ops import attention, attention_varlen
from honed.ops.attention_tiles import Rule
from honed.ops.attention_varlen import Machine, choose_kernel, works

H100 = Machine(capability=(9, 0), torch_flash=True, flash_attn=False)
BOTH = replace(H100, flash_attn=True)
SINKS = torch.zeros(4)
LENGTHS, H, K, E = (5, 3, 3, 6), 4, 2, 8
BOUNDS = torch.tensor([0, 5, 8, 11, 17], dtype=torch.int32)
TREE = torch.tensor([[-1, 0, 0, 2], [0, 5, 4, 6]], dtype=torch.int32)


@pytest.mark.parametrize(
    ("on", "rule", "options", "expected"),
    [
        (H100, Rule(), {}, "torch"),
        (H100, Rule(window=7, scaling=0.1), {}, "torch"),
        (BOTH, Rule(), {"dtype": torch.float16}, "torch"),
        (replace(H100, torch_flash=False), Rule(), {}, None),
        (replace(BOTH, torch_flash=False), Rule(), {}, "flash_attn"),
        (H100, Rule(), {"dtype": torch.float32}, None),
        (H100, Rule(dropout=0.1), {}, None),
        (BOTH, Rule(dropout=0.1), {}, "flash_attn"),
        (H100, Rule(softcap=50.0), {}, None),
        (BOTH, Rule(softcap=50.0), {}, "flash_attn"),
        (BOTH, Rule(sinks_H=SINKS), {}, None),
        (H100, Rule(), {"head_size": 20}, None),
        (H100, Rule(), {"head_size": 192, "value_size": 128}, None),
        (H100, Rule(), {"head_size": 256, "value_size": 256}, "torch"),
        (replace(H100, capability=(8, 9)), Rule(), {"head_size": 256, "value_size": 256}, None),
        (replace(H100, capability=(8, 9)), Rule(), {}, "torch"),
        (replace(BOTH, capability=(7, 5)), Rule(), {}, None),
        (replace(BOTH, capability=None), Rule(), {}, None),
    ],
)
def test_choice(on: Machine, rule: Rule, options: dict[str, Any], expected: str | None) -> None:
    assert (
        choose_kernel(on, rule, **{"dtype": torch.bfloat16, "head_size": 64, "value_size": 64, **options}) == expected
    )


def test_a_cpu_has_no_kernel() -> None:
    assert attention_varlen.machine(torch.device("cpu")) == Machine(
        capability=None, torch_flash=False, flash_attn=False
    )


def by_loop(*args: Any, window: tuple[int, int], scale: float | None, softcap: float = 0.0) -> Any:
    """What both packages document: per sequence, aligned at the last query and the last key."""
    *qkv, bounds_q, bounds_k, _, _ = args
    q, k, v = (x.float() if x.dtype == torch.bfloat16 else x for x in qkv)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    outputs = []
    for n in range(len(bounds_q) - 1):
        queries = q[bounds_q[n] : bounds_q[n + 1]]
        keys, values = (x[bounds_k[n] : bounds_k[n + 1]] for x in (k, v))
        scores = torch.einsum("qhe,she->hqs", queries, keys) * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        age = torch.arange(len(keys) - len(queries), len(keys))[:, None] - torch.arange(len(keys))
        seen = (age >= -window[1]) & (age <= (window[0] if window[0] >= 0 else len(keys)))
        outputs.append(torch.einsum("hqs,she->qhe", torch.where(seen, scores, -torch.inf).softmax(-1), values))
    return torch.cat(outputs).to(args[0].dtype)


def torch_without_groups(*args: Any, scale: float | None, window_size: tuple[int, int]) -> Any:
    """torch 2.11."""
    assert args[0].shape[1] == args[1].shape[1]
    return by_loop(*args, window=window_size, scale=scale)


def torch_with_groups(*args: Any, scale: float | None, window_size: tuple[int, int], enable_gqa: bool = False) -> Any:
    """torch 2.13."""
    bounds_q, bounds_k, *most = args[3:]
    assert enable_gqa and bounds_q.dtype == bounds_k.dtype == torch.int32
    assert most == [bounds_q.diff().max(), bounds_k.diff().max()]
    return by_loop(*args, window=window_size, scale=scale)


def flash_attn_varlen_func(
    *args: Any, softmax_scale: float | None, window_size: tuple[int, int], **options: Any
) -> Any:
    """flash-attn 2."""
    assert options == {"causal": True, "dropout_p": 0.0, "softcap": 0.0}
    return by_loop(*args, window=window_size, scale=softmax_scale)


def provide(double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = double  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    attention_varlen._works.cache_clear()


@pytest.mark.parametrize("double", [torch_without_groups, torch_with_groups, flash_attn_varlen_func])
@pytest.mark.parametrize("structure", [{"max_length_q": 6}, {}, {"shared_prefixes": TREE}], ids=str)
@pytest.mark.parametrize("rule", [{}, {"sliding_window": 3, "scaling": 0.3}], ids=str)
def test_the_whole_row_in_one_call_equals_the_documents_one_by_one(
    double: Any, structure: dict[str, Any], rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    provide(double, monkeypatch)
    monkeypatch.setattr(varlen, "varlen_attn", double)
    qkv = [torch.randn(1, heads, 17, E, dtype=torch.float64, requires_grad=True) for heads in (H, K, K)]
    arguments = (torch.nn.Identity(), *qkv, None)
    expected, _ = attention.document_attention(*arguments, cu_seq_lens_q=BOUNDS, **structure, **rule)
    kernel = "flash_attn" if double is flash_attn_varlen_func else "torch"
    monkeypatch.setattr(attention, "_kernel", lambda *_: kernel)
    found, _ = attention.document_attention(*arguments, cu_seq_lens_q=BOUNDS, **structure, **rule)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, qkv, upstream), torch.autograd.grad(expected, qkv, upstream), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("rule", [Rule(), Rule(window=7, scaling=0.2), Rule(softcap=20.0)], ids=str)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_kernel_is_tried_before_it_is_used(rule: Rule, checkpointed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also amid a checkpointed layer's forward pass, under autocast, and where no gradients are recorded."""

    def loop(*args: Any, softmax_scale: float | None, window_size: tuple[int, int], softcap: float, **_: Any) -> Any:
        tried.append(len(args[0]))
        return by_loop(*args, window=window_size, scale=softmax_scale, softcap=softcap)

    def layer(x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(checkpointed):
            assert works("flash_attn", CPU, rule, dtype=torch.bfloat16, head_size=64)
        return x.sin()

    CPU, tried = torch.device("cpu"), list[int]()
    provide(loop, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.ones(3, requires_grad=True)
        (checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)).sum().backward()
        layer(x)
    assert tried == [7]


@pytest.mark.parametrize("fault", ["raises", "misaligned", "no window", "wrong gradient"])
def test_a_kernel_that_is_wrong_is_left_alone_with_one_warning(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*args: Any, softmax_scale: float | None, window_size: tuple[int, int], **_: Any) -> Any:
        q, k, v, *rest = args
        if fault == "raises":
            raise RuntimeError("no kernel image\nis available")
        if fault == "wrong gradient":
            k = k.detach() + 0 * k
        window = (-1, 0) if fault == "no window" else window_size
        if fault == "misaligned":  # at the first key, as SDPA's mask is
            window = (window[0] - 1, 1)
        return by_loop(q, k, v, *rest, window=window, scale=softmax_scale)

    provide(kernel, monkeypatch)
    asked = {"dtype": torch.bfloat16, "head_size": 64}
    with pytest.warns(RuntimeWarning, match="no kernel image" if fault == "raises" else "other results"):
        assert not works("flash_attn", torch.device("cpu"), Rule(window=5), **asked)
    assert not works("flash_attn", torch.device("cpu"), Rule(window=5), **asked)


def test_a_trial_without_memory_says_nothing_about_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    provide(full, monkeypatch)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            works("flash_attn", torch.device("cpu"), Rule(), dtype=torch.bfloat16, head_size=64)


def test_a_kernel_that_is_told_the_longest_document_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        pytest.fail("the boundaries were read from the device")

    monkeypatch.setattr(varlen, "varlen_attn", torch_with_groups)
    monkeypatch.setattr(attention, "_kernel", lambda *_: "torch")
    monkeypatch.setattr(attention, "_layout", never)
    qkv = [torch.randn(1, heads, 17, E) for heads in (H, K, K)]
    attention.document_attention(torch.nn.Identity(), *qkv, None, cu_seq_lens_q=BOUNDS, max_length_q=6)
