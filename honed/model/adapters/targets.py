"""What "all-linear" leaves out: layers that no adapter fits, and weights that are in no linear layer.

peft puts an adapter on every `nn.Linear`. It does not work on those that compute something else in their forward
(routers that return several tensors, grouped layers). On a state-space layer's parts it would be passed by in silence:
the kernels take `out_proj.weight`, `x_proj.weight` and `dt_proj.weight`, not the layers, and without kernels
transformers takes `dt_proj.weight`, too. Merging would then put into the weights what was never in use. Weights outside
of linear layers, such as stacked experts, get no adapter unless peft knows the family; where it does, it leaves out
linear layers that are named like an expert's (shared experts, dense layers).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ALL_LINEAR = "all-linear"
STATE_SPACE = ("A_log", "D")  # parameters that together only a Mamba layer has
TAKES_ADAPTER = "in_proj"  # the one part of it that is called as a layer
WORTH_TELLING = 0.01  # of all matrices


def asks_for_all(config: Any) -> bool:
    """Whether an adapter's configuration asks for all linear layers."""
    names = getattr(config, "target_modules", None)
    return isinstance(names, str) and names.lower() == ALL_LINEAR


def unfit_layers(model: Any) -> list[str]:
    """The linear layers that no adapter fits, by the last two parts of their names, such as "mixer.out_proj"."""
    unfit = []
    for name, module in model.named_modules():
        mamba = all(hasattr(module, part) for part in STATE_SPACE)
        for child, layer in module.named_children():
            if isinstance(layer, nn.Linear) and ((mamba and child != TAKES_ADAPTER) or not _is_linear(layer)):
                unfit.append(f"{name.rpartition('.')[2]}.{child}".lstrip("."))
    return sorted(set(unfit))


def lost_on_loading(model: Any) -> list[str]:
    """Adapted layers whose weights peft would not find again in the file that it writes; by the last parts of names.

    When peft loads an adapter it renames keys as transformers does for old checkpoints, some new names among them. This
    loads the adapter into itself.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    if getattr(model.active_peft_config.peft_type, "value", "") != "LORA":  # it renames no other method's keys
        return []
    found = set_peft_model_state_dict(model, get_peft_model_state_dict(model, save_embedding_layers=False))
    missing = [key.partition(".lora_") for key in found.missing_keys]
    return sorted({".".join(name.split(".")[-2:]) for name, is_adapter, _ in missing if is_adapter})


def notes_on_frozen(model: Any) -> list[str]:
    """A note on large weights that an adapter on all linear layers leaves as they are; none where there are none.

    Args:
        model: with the adapter.
    """
    sizes: dict[str, int] = {}
    base = model.get_base_model()
    aside = {id(p) for module in base.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    aside |= {id(p) for p in getattr(base.get_output_embeddings(), "parameters", tuple)()}
    total = 0
    for name, parameter in base.named_parameters():
        if parameter.ndim < 2 or parameter.requires_grad or id(parameter) in aside:
            continue
        total += parameter.numel()
        if "base_layer" not in name.split("."):
            short = ".".join([part for part in name.split(".") if not part.isdigit()][-3:]).removesuffix(".weight")
            sizes[short] = sizes.get(short, 0) + parameter.numel()
    told = {name: size for name, size in sizes.items() if size >= WORTH_TELLING * total}
    if not told:
        return []
    share = sum(told.values()) / total
    return [
        f"all-linear leaves {share:.0%} of the weights in matrices without an adapter: {', '.join(sorted(told))}. "
        "LoraConfig(target_parameters=[...]) can name them."
    ]


@torch.no_grad()
def _is_linear(layer: nn.Linear) -> bool:
    """Whether it gives what a linear layer gives; a model's own kind is tried on one token."""
    if not type(layer).__module__.startswith("transformers.models."):
        return True
    try:
        output = layer(layer.weight.new_zeros(1, 1, layer.in_features))
    except RuntimeError:
        return False
    return isinstance(output, torch.Tensor) and output.shape == (1, 1, layer.out_features)
