"""Detects initial values of LoRA (peft's `init_lora_weights`) that a run cannot start from, or not load again.

PiSSA starts from the largest singular vectors of each weight and subtracts them from it. peft saves only the trained
adapter, and subtracts them once more when it loads the adapter. The randomised decomposition of `pissa_niter_*` then
finds other vectors, so base and adapter no longer fit together.
"""

from __future__ import annotations

from typing import Any

from honed.errors import ModelError

FROM_WEIGHTS = ("pissa", "corda", "mica", "orthogonal")  # peft computes these only for weights in 16 or 32 bits


def refuse_unusable_start(model: Any, config: Any) -> list[str]:
    """Returns notes on initial values that peft takes from data which honed does not pass to it.

    Args:
        model: not yet with the adapter.
        config: any of peft's configurations.

    Raises:
        ModelError: an adapter with these initial values could not be made, or not be loaded again.
    """
    start = init_of(config)
    refuse_random_pissa(config)
    packed = any(not parameter.is_floating_point() for parameter in model.parameters())
    if start.startswith(FROM_WEIGHTS) and packed:
        raise ModelError(
            f"init_lora_weights={start!r} needs the weights of the base in 16 or 32 bits, but they are quantised.",
            fix="leave it out, use init: loftq in a recipe, or load the model unquantised",
        )
    if start == "lora_ga" and not any(hasattr(layer, "_peft_loraga_grad") for layer in model.modules()):
        raise ModelError(
            "init_lora_weights='lora_ga' needs gradients of the base, and the model has none.",
            fix="call peft's preprocess_loraga(model, config, train_step) first, or leave it out",
        )
    if start == "eva":
        return [
            "init_lora_weights='eva' starts like the default until you call peft's "
            "initialize_lora_eva_weights(trainer.model, dataloader) before train()"
        ]
    return []


def refuse_random_pissa(config: Any) -> None:
    """Refuses adapters of `pissa_niter_*`.

    Raises:
        ModelError: the configuration asks for it.
    """
    if init_of(config).startswith("pissa_niter"):
        raise ModelError(
            f"init_lora_weights={init_of(config)!r} draws random numbers: when the saved adapter is loaded, peft draws "
            "others and changes the base in another way, so the result is not the trained model.",
            fix="use 'pissa', which is exact; keep an adapter trained with peft by saving it with "
            "path_initial_model_for_weight_conversion",
        )


def init_of(config: Any) -> str:
    """Returns `init_lora_weights` in lower case; "" where it is not a name."""
    start = getattr(config, "init_lora_weights", None)
    return start.lower() if isinstance(start, str) else ""
