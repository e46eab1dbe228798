"""What "all-linear" omits: layers that adapters do not support, and weights outside linear layers.

peft attaches an adapter to every `nn.Linear`. It fails on those whose forward computes something else (routers that
return several tensors, grouped layers). In a state-space layer it would silently have no effect: the kernels read
`out_proj.weight`, `x_proj.weight` and `dt_proj.weight` without calling the layers, and without kernels transformers
also reads `dt_proj.weight`. LongCat's router does the same. Merging would then add an update that was never used.

Weights outside linear layers, such as stacked experts, get no adapter unless peft knows the family; if it does, it
applies the names `gate_proj`, `up_proj` and `down_proj` to experts only. Linear layers with these names (shared
experts, dense layers) then get adapters through their weights' names in `target_parameters`. Such an adapter computes
the same as one on the layer, and its file is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

ALL_LINEAR = "all-linear"
STATE_SPACE = ("A_log", "D")  # only Mamba layers have both of these parameters
TAKES_ADAPTER = "in_proj"  # the only part of a Mamba layer that is called as a layer
ROUTER = ("e_score_correction_bias", "classifier")  # only LongCat's router has both of these parts
WORTH_TELLING = 0.01  # fraction of all matrices


def asks_for_all(config: Any) -> bool:
    """Whether an adapter's configuration targets all linear layers."""
    names = getattr(config, "target_modules", None)
    return isinstance(names, str) and names.lower() == ALL_LINEAR


def unfit_layers(model: Any) -> list[str]:
    """Returns linear layers that do not support adapters, by the last two parts of their names ("mixer.out_proj")."""
    unfit = []
    for name, module in model.named_modules():
        mamba, router = (all(hasattr(module, part) for part in parts) for parts in (STATE_SPACE, ROUTER))
        for child, layer in module.named_children():
            passed_by = (mamba and child != TAKES_ADAPTER) or (router and child == ROUTER[1])
            if isinstance(layer, nn.Linear) and (passed_by or not _is_linear(layer)):
                unfit.append(f"{name.rpartition('.')[2]}.{child}".lstrip("."))
    return sorted(set(unfit))


def weights_left_out(model: Any) -> list[str]:
    """Returns weights of linear layers that "all-linear" left without an adapter because they are named like experts.

    Layers that the configuration excludes, the head, and layers with packed weights are not included.

    Args:
        model: the model with the adapter.

    Returns:
        Names for `target_parameters`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
    from peft.utils.other import AuxiliaryTrainingWrapper

    config = copy.copy(model.active_peft_config)
    if not hasattr(config, "target_parameters"):
        return []
    base, kinds = model.get_base_model(), (BaseTunerLayer, AuxiliaryTrainingWrapper)  # the latter: trained as a whole
    done = {id(part) for layer in base.modules() if isinstance(layer, kinds) for part in layer.modules()}
    done.add(id(base.get_output_embeddings()))
    names = []
    for name, layer in base.named_modules():
        config.target_modules = [name.rpartition(".")[2]]
        if _is_plain(layer) and id(layer) not in done and check_target_module_exists(config, name):
            names.append(f"{name}.weight")
    return _shortened(names, {name for name, _ in base.named_parameters()} - set(names))


def lost_on_loading(model: Any) -> list[str]:
    """Returns adapted layers whose weights peft would not find in the file that it writes, by the last parts of names.

    When peft loads an adapter it renames keys as transformers does for old checkpoints, including some new names. This
    function tests it by loading the adapter into itself.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    if getattr(model.active_peft_config.peft_type, "value", "") != "LORA":  # keys of other methods are not renamed
        return []
    found = set_peft_model_state_dict(model, get_peft_model_state_dict(model, save_embedding_layers=False))
    missing = [key.partition(".lora_") for key in found.missing_keys]
    return sorted({".".join(name.split(".")[-2:]) for name, is_adapter, _ in missing if is_adapter})


def notes_on_frozen(model: Any) -> list[str]:
    """Returns a note on large weights that an adapter on all linear layers does not train, if there are any.

    Args:
        model: with the adapter.
    """
    sizes: dict[str, int] = {}
    quantised: set[str] = set()
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
            if not parameter.is_floating_point():
                quantised.add(short)
    told = {name: size for name, size in sizes.items() if size >= WORTH_TELLING * total}
    if not told:
        return []
    share = sum(told.values()) / total
    which = "those that are not quantised" if quantised & told.keys() else "them"
    return [
        f"all-linear leaves {share:.0%} of the weights in matrices without an adapter: {', '.join(sorted(told))}. "
        f"LoraConfig(target_parameters=[...]) can name {which}."
    ]


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is a linear layer whose weight is an unpacked matrix."""
    return isinstance(layer, nn.Linear) and layer.weight.is_floating_point() and layer.weight.dtype.itemsize > 1


def _shortened(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Returns the last three parts of each name, unless another name ends in the same way."""
    short = {name: ".".join(name.split(".")[-3:]) for name in names}
    taken = {".".join(name.split(".")[-3:]) for name in others}
    return sorted({name if end in taken else end for name, end in short.items()})


@torch.no_grad()
def _is_linear(layer: nn.Linear) -> bool:
    """Whether it computes what a linear layer does; a model's own class is tested on one token."""
    if not type(layer).__module__.startswith("transformers.models."):
        return True
    try:
        output = layer(layer.weight.new_zeros(1, 1, layer.in_features))
    except RuntimeError:
        return False
    return isinstance(output, torch.Tensor) and output.shape == (1, 1, layer.out_features)
