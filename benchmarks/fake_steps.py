"""Training steps of models that would never fit here: tensors have shapes but no data, and live ones are counted.

They are fake tensors of torch's FakeTensorMode. honed's loss reads values, which fake tensors do not have, so the head
scores one position, and its work is not counted. A 4-bit layer is simulated by one that keeps the packed bytes and
unpacks them for each product.
"""

from __future__ import annotations

from typing import Any

import torch
from alive import Alive


def peak_without_bytes(config: Any, *, method: str, rows: int, length: int, checkpointing: bool) -> int:
    """The peak in bytes of two steps on CPU under autocast; the head scores one position only."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    from honed.model.adapters.adapters import lora_config, ready_to_train

    alive = Alive()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
        if method == "qlora":
            pack_layers(model)
        adapter = None if method == "full" else lora_config()
        model, _ = ready_to_train(model, adapter, checkpointing=checkpointing)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with FakeTensorMode(), alive:
        give_fake_weights(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        ids = torch.zeros(rows, length, dtype=torch.int64)
        alive.most = alive.now  # creating the model does not count
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits.float().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return alive.most


def give_fake_weights(model: Any) -> None:
    """Replaces weights on the meta device with fake ones, in place; tied weights stay tied."""
    fakes: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in fakes:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    trained = isinstance(old, torch.nn.Parameter)
                    fakes[id(old)] = torch.nn.Parameter(new, requires_grad=old.requires_grad) if trained else new
                tensors[name] = fakes[id(old)]


def pack_layers(model: Any) -> None:
    """Replaces the decoder's linear layers with 4-bit ones, in place."""
    for module in list(model.model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(module, name, FourBit(child))


class Packed(torch.autograd.Function):
    """A product with a weight that is unpacked in the forward pass, and again for the gradient of the input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.rows = rows
        return x @ x.new_empty(rows, x.shape[-1]).t()

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> Any:
        packed = ctx.saved_tensors[0]
        return above @ above.new_empty(ctx.rows, packed.numel() * 2 // ctx.rows), None, None, None


class FourBit(torch.nn.Linear):
    """A layer with half a byte per weight and the scales, as in bitsandbytes."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        count = linear.weight.numel()
        self.weight = torch.nn.Parameter(torch.empty(count // 2, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("scales", torch.empty(count // 64 + count // 4096, dtype=torch.uint8))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = Packed.apply(x, self.weight, self.scales, self.out_features)
        return y if self.bias is None else y + self.bias
