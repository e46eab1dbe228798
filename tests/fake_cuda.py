"""Tensors on a CUDA device that is not there: they have shapes, formats and a device, and neither memory nor values.

torch's `FakeTensorMode` propagates them. What is added here lets whole training steps run with a torch without CUDA:

- the autograd engine asks a device's "guard" for streams: CUDA is given that of the meta device, which does nothing;
- tensors of the host stay real, so that counts and weights that are read from them have their values;
- what makes the host wait for the device is written down with the line of the package that asked: reading a value, a
  shape that depends on values, a copy that blocks. What was copied there can be read back, all else reads as ones;
- bytes that are alive on the device are counted, in the 512-byte blocks of torch's allocator. Workspaces inside
  kernels (cuBLAS, flash attention's backward pass) are not among them.

Kernels of Triton are not run.
"""

from __future__ import annotations

import copy
import ctypes
import sys
import traceback
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from honed.model.load.packed_experts import PackedWeight
from honed.ops import attention_varlen, cross_entropy, cross_entropy_triton, linear_cross_entropy
from honed.train.optimizers.stochastic_rounding import StochasticRoundingAdamW

GPU = torch.device("cuda", 0)
PACKAGE = Path(__file__).resolve().parent.parent / "honed"
CUDA, META = 1, 14  # numbers of c10::DeviceType
GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
BLOCK = 512
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default, aten.equal.default}
SHAPES = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default}

needs_fake_cuda = pytest.mark.skipif(
    sys.platform != "linux" or torch.version.cuda is not None or torch.version.hip is not None,
    reason="needs a torch for Linux that is built without CUDA: the engine of others asks the driver",
)


class FakeCuda(TorchDispatchMode):
    """The device; `fake_cuda` opens it.

    Attributes:
        waits: what made the host wait, as "aten.op at file:line function".
        now, most: bytes alive on the device, now and at most so far.
        seen: called with each tensor that is made there.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake, self.waits = fake, list[str]()
        self.now = self.most = 0
        self.seen: Callable[[torch.Tensor], None] = lambda _: None
        self.in_backward = False
        self._values = weakref.WeakKeyDictionary[torch.UntypedStorage, torch.Tensor]()
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(leaf, PackedWeight) for leaf in tree_leaves((args, kwargs))):
            with self:
                return PackedWeight.__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.prim.device.default:  # C++ asks where a tensor is
            return torch.device("meta") if self._in_engine() else args[0].fake_device
        meant = self._in_engine() or func is aten._to_copy.default  # "cuda" without a number is what the guard says
        if meant and kwargs.get("device") == torch.device("meta"):
            kwargs = {**kwargs, "device": GPU}
        to = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if to != "cuda" and not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return self._on_device(func, args, kwargs, to)

    def _on_device(self, func: Any, args: Any, kwargs: Any, to: str | None) -> Any:
        at_once = bool(kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:3] == (True,)))
        if func in READS or to == "cpu":
            return self._read(func, args[0], kwargs, at_once)
        read = [
            leaf for leaf in tree_leaves((args, kwargs)) if on_host(leaf) and leaf.dim() and leaf.device.type == "cpu"
        ]
        if func in SHAPES or (read and not at_once):
            self._wait(func)
        if func is aten.copy_.default and on_host(args[0]):
            return args[0]
        if func is aten.repeat_interleave.Tensor:
            return self._repeated(func, args[0], kwargs.get("output_size"))
        if func is aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
            return self._grouped_slowly(func, args, kwargs)
        faked = tree_map(lambda leaf: self.fake.from_tensor(leaf) if on_host(leaf) else leaf, (args, kwargs))
        with self.fake:
            outputs = func(*faked[0], **faked[1])
        if func is aten._to_copy.default and on_host(args[0]):
            self._values[outputs.untyped_storage()] = args[0]
        self._count(outputs)
        return outputs

    def _read(self, func: Any, tensor: torch.Tensor, kwargs: Any, at_once: bool) -> Any:
        made = func not in READS and func is not aten._to_copy.default  # `empty_like` and its like read nothing
        if not at_once and not made:
            self._wait(func)
        with unset_fake_temporarily():
            value = self._value(tensor)
            return value.item() if func in READS else value.to(kwargs.get("dtype") or tensor.dtype)

    def _repeated(self, func: Any, lengths: torch.Tensor, total: int | None) -> torch.Tensor:
        if total is None:
            self._wait(func)
            total = int(self._value(lengths).sum())
        return torch.empty(total, dtype=torch.int64, device=GPU)

    def _grouped_slowly(self, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """CUDA has a kernel for bfloat16 alone; else it reads the offsets, which the shape function does not know."""
        self._wait(func)
        halves = [arg.bfloat16() if arg is not None and arg.is_floating_point() else arg for arg in args]
        product: torch.Tensor = self._on_device(func, tuple(halves), kwargs, None)
        return product.to(args[0].dtype)

    def _value(self, tensor: torch.Tensor) -> torch.Tensor:
        origin = self._values.get(tensor.untyped_storage())
        if origin is None:
            return torch.ones(tensor.shape, dtype=tensor.dtype)
        return origin.contiguous().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _wait(self, func: Any) -> None:
        self.waits.append(f"{func} at {asked_by()}")

    def _in_engine(self) -> bool:
        """Whether the engine itself asks. A checkpoint's second forward pass, inside of it, records gradients."""
        return self.in_backward and (torch._C._current_graph_task_id() == -1 or not torch.is_grad_enabled())

    def _count(self, outputs: Any) -> None:
        for tensor in tree_leaves(outputs):
            if not isinstance(tensor, FakeTensor) or tensor.fake_device.type != "cuda":
                continue
            self.seen(tensor)
            if (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                size = -(-storage.nbytes() // BLOCK) * BLOCK
                self._add(size)
                weakref.finalize(storage, self._add, -size)

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def on_host(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor)


def asked_by() -> str:
    """The innermost line of the package that is on the stack."""
    frames = [frame for frame in traceback.extract_stack() if PACKAGE in Path(frame.filename).parents]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "a test"


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Within the block the device "cuda:0" is a fake one, with what an H100 can do."""
    single = torch.autograd.set_multithreading_enabled(False)  # else the engine wants a thread for each real device
    with guard_of_meta(), single, FakeTensorMode(allow_non_fake_inputs=True) as fake:
        mode = FakeCuda(fake)
        monkeypatch.setattr(torch.autograd.graph.Variable, "_execution_engine", engine(mode))
        monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
        monkeypatch.setattr("torch.backends.cuda.is_flash_attention_available", lambda: True)
        monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda *_: mode.most)
        monkeypatch.setattr("torch.cuda.device_of", nullcontext)
        monkeypatch.setattr(StochasticRoundingAdamW, "_noise", lambda *_: torch.Generator())
        monkeypatch.setattr(attention_varlen, "_works", lambda *_: True)
        for user in (cross_entropy_triton, linear_cross_entropy):
            monkeypatch.setattr(user, "can_score", lambda logits: logits.device.type == "cuda")
        assert cross_entropy.cross_entropy_triton is cross_entropy_triton
        monkeypatch.setattr(cross_entropy_triton, "_kernel", lambda: defaultdict(lambda: lambda *_, **__: None))
        attention_varlen.machine.cache_clear()
        try:
            with mode:
                yield mode
        finally:
            attention_varlen.machine.cache_clear()


def engine(mode: FakeCuda) -> Any:
    """torch's own, which says when it runs."""
    run = torch.autograd.Variable._execution_engine.run_backward

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        mode.in_backward = True
        try:
            return run(*args, **kwargs)
        finally:
            mode.in_backward = False

    return type("Engine", (), {"run_backward": staticmethod(run_backward)})


@contextmanager
def guard_of_meta() -> Iterator[None]:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, GUARDS)
    guards[CUDA] = guards[META]
    try:
        yield
    finally:
        guards[CUDA] = None


def to_gpu(model: torch.nn.Module) -> torch.nn.Module:
    """The model, with its parameters and buffers on the fake device, whatever it was on; tied ones stay tied."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    moved[id(tensor)] = _on_gpu(tensor), tensor
                tensors[name] = moved[id(tensor)][0]
    return model


def _on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    """What bitsandbytes knows of a packed weight comes along."""
    if isinstance(tensor, PackedWeight):
        return torch.nn.Parameter(
            PackedWeight(torch.empty_like(tensor.packed, device=GPU), _state_on_gpu(tensor)), False
        )
    new = torch.empty_like(tensor.detach().as_subclass(torch.Tensor), device=GPU)
    if not isinstance(tensor, torch.nn.Parameter):
        return new
    parameter = torch.nn.Parameter(new, tensor.requires_grad)
    if hasattr(tensor, "quant_state"):
        parameter.quant_state, parameter.bnb_quantized = _state_on_gpu(tensor), True  # type: ignore[attr-defined]
    return parameter


def _state_on_gpu(weight: Any) -> Any:
    state = copy.copy(weight.quant_state if hasattr(weight, "quant_state") else weight.state)
    if state.nested:
        state.state2 = copy.copy(state.state2)
    state.to(GPU)
    return state
