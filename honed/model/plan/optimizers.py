"""Memory of an optimizer's state and of its step's temporaries.

    optimizer = Optimizer(name="muon")
    state_bytes(optimizer, tensors, weight=4)
    step_bytes(optimizer, tensors, weight=4, device="cuda")

Names are transformers' (`optim`) and honed's "muon". `optim_args` is considered if it changes the state. The lookup
tables of bitsandbytes' 8-bit states, 2 KB in total, are omitted.

Sources: each optimizer's `init_state` or first step. tests/model/plan/test_plan_optimizers.py compares with real steps:
states exactly, temporaries within a few percent.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from honed.errors import RecipeError
from honed.model.plan.activations import FP32
from honed.model.plan.sizes import Tensors

COUNTER = 4  # bytes of a step counter, or another single float32
DEFAULT = "adamw_torch_fused"  # transformers' own
# For 8-bit and 4-bit states: elements that share a float32 scale, and the size below which a tensor is not quantised.
BLOCK, LEAST_QUANTIZED = 256, 4096
PAGED_FROM = 100_000  # elements of a tensor whose state bitsandbytes can page out
# Elements that stochastic rounding computes at a time; see honed/train/optimizers/stochastic_rounding.py.
ROUNDED_AT_A_TIME, ROUNDING_BYTES = 1 << 24, 23

# Copies of a weight in its own dtype, and additional bytes per tensor.
OWN_FORMAT = {
    "adamw_torch": (2, COUNTER),
    "adamw_torch_fused": (2, COUNTER),
    "adagrad": (1, COUNTER),
    "rmsprop": (1, COUNTER),
    "sgd": (0, 0),
    "schedule_free_radam": (2, 0),
    "schedule_free_adamw": (2, 0),
    "schedule_free_sgd": (1, 0),
}
# bitsandbytes: state elements per weight, and their bits.
BITSANDBYTES = {
    "adamw_8bit": (2, 8),
    "adamw_bnb_8bit": (2, 8),
    "paged_adamw_8bit": (2, 8),
    "paged_adamw_32bit": (2, 32),
    "ademamix": (3, 32),
    "ademamix_8bit": (3, 8),
    "paged_ademamix_32bit": (3, 32),
    "paged_ademamix_8bit": (3, 8),
    "lion_32bit": (1, 32),
    "lion_8bit": (1, 8),
    "paged_lion_32bit": (1, 32),
    "paged_lion_8bit": (1, 8),
    "rmsprop_bnb": (1, 32),
    "rmsprop_bnb_32bit": (1, 32),
    "rmsprop_bnb_8bit": (1, 8),
}
TORCHAO = {"adamw_torch_8bit": 8, "adamw_torch_4bit": 4}
KNOWN = frozenset((*OWN_FORMAT, *BITSANDBYTES, *TORCHAO, "adafactor", "muon", "stable_adamw"))
# Copies of weights, in their dtype, that a step creates: of the current and the previous tensor; on CUDA, of all.
IN_A_LOOP = {"adamw_torch": (2, 1), "adagrad": (1, 1), "rmsprop": (1, 1), "stable_adamw": (2, 1)}
AT_ONCE_ON_CUDA = {"adamw_torch": 1, "adagrad": 2, "rmsprop": 1, "stable_adamw": 1}
AT_ONCE = {"schedule_free_adamw": 1, "schedule_free_radam": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """An optimizer by name.

    Attributes:
        name: see the module's docstring; an optimizer that is not `known` counts as AdamW.
        options: the names and values in `optim_args`.
        decays: whether weight decay is above 0.
        in_backward: each weight is updated in the backward pass, and its gradient freed (`optimizer_in_backward`).
    """

    name: str = DEFAULT
    options: tuple[tuple[str, str], ...] = ()
    decays: bool = False
    in_backward: bool = False

    @property
    def known(self) -> bool:
        """Whether its state is known."""
        return self.name in KNOWN

    @property
    def doubt(self) -> str:
        """A note for plans with it; "" if its state is known."""
        return "" if self.known else f"the state of {self.name} is not known, and counted as AdamW's"

    @property
    def alone(self) -> bool:
        """Whether it needs whole weights and gradients, and so cannot train shards."""
        return self.in_backward or self.name == "muon"

    @property
    def paged(self) -> bool:
        """Whether its state can be paged out to host memory."""
        return self.name.startswith("paged_")

    def option(self, name: str) -> str:
        """Returns an option in `optim_args` in lower case; "" without it."""
        return dict(self.options).get(name, "").lower()


ADAMW = Optimizer()


def optimizer_for(name: str, optim_args: str | None, *, decays: bool = False, in_backward: bool = False) -> Optimizer:
    """Returns the optimizer that these training arguments describe."""
    options = tuple(named_values(optim_args).items())
    return Optimizer(name=name, options=options, decays=decays, in_backward=in_backward)


def named_values(optim_args: str | None) -> dict[str, str]:
    """Parses `optim_args`, "name=value,name=value"."""
    pairs = (pair.partition("=") for pair in (optim_args or "").replace(" ", "").split(",") if pair)
    return {name: value for name, _, value in pairs}


def state_bytes(optimizer: Optimizer, tensors: Sequence[Tensors], *, weight: int) -> int:
    """Returns the bytes of the whole state.

    Args:
        tensors: the trained weights.
        weight: bytes per element.

    Raises:
        RecipeError: an option of `optim_args` is no number.
    """
    count = _counting(optimizer)
    return sum(each.count * count(each, weight) for each in tensors)


def paged_bytes(optimizer: Optimizer, tensors: Sequence[Tensors], *, weight: int) -> int:
    """Returns the bytes of the state that can be paged out to host memory."""
    large = [each for each in tensors if optimizer.paged and each.size >= PAGED_FROM]
    return state_bytes(optimizer, large, weight=weight)


def step_bytes(optimizer: Optimizer, tensors: Sequence[Tensors], *, weight: int, device: str) -> int:
    """Returns the peak bytes of temporaries during a step with all gradients in memory.

    Raises:
        RecipeError: an option of `optim_args` is no number.
    """
    name, at_once = optimizer.name, dict(AT_ONCE)
    two_of_each = (size for each in tensors for size in [each.size] * min(each.count, 2))
    largest, next_largest = heapq.nlargest(2, (0, 0, *two_of_each))
    if name == "muon":
        return max((_orthogonalising(each, weight) for each in tensors if each.hidden), default=0)
    if name == "adafactor":  # float32: the squared gradient, its sum with eps; copies of both in half precision
        copies = 2 if weight == FP32 else 4
        return FP32 * (copies * largest + next_largest)
    if _rounds(optimizer):  # float32 weights use the fused kernel, without temporaries
        return ROUNDING_BYTES * max((_chunk(each) for each in tensors), default=0) if weight < FP32 else 0
    at_once |= AT_ONCE_ON_CUDA if device == "cuda" and not optimizer.in_backward else {}
    if name == "sgd" and (optimizer.decays or optimizer.option("nesterov") in TRUE):
        return weight * (_all(tensors) if device == "cuda" else largest)
    if name in at_once:
        return weight * at_once[name] * _all(tensors)
    own, before = IN_A_LOOP.get(name, (0, 0))
    return weight * (own * largest + before * next_largest)


TRUE = ("true", "1", "yes")
Count = Callable[[Tensors, int], int]


def _counting(optimizer: Optimizer) -> Count:
    """Returns the function that computes the bytes of state of one tensor."""
    name = optimizer.name
    if name in SPECIAL:
        return SPECIAL[name]
    if name in BITSANDBYTES:
        return lambda tensor, weight: _bitsandbytes(tensor, *BITSANDBYTES[name])
    if name in TORCHAO:
        return lambda tensor, weight: _torchao(tensor, weight, TORCHAO[name])
    copies, besides = OWN_FORMAT.get(name, OWN_FORMAT[DEFAULT])
    copies += _extra_copies(optimizer)
    return lambda tensor, weight: tensor.size * weight * copies + besides


def _extra_copies(optimizer: Optimizer) -> int:
    """Additional copies of a weight for options that are off by default."""
    if optimizer.name not in ("sgd", "rmsprop"):
        return 0
    text = optimizer.option("momentum") or "0"
    try:
        momentum = float(text)
    except ValueError:
        raise RecipeError(
            f"{text!r} is not a valid momentum (optim_args).", fix="write optim_args='momentum=0.9'"
        ) from None
    return (momentum != 0) + (optimizer.name == "rmsprop" and optimizer.option("centered") in TRUE)


def _muon(tensor: Tensors, weight: int) -> int:
    """A momentum for each matrix of a hidden layer, and AdamW's state for the others."""
    return tensor.size * weight if tensor.hidden else tensor.size * weight * 2 + COUNTER


def _adafactor(tensor: Tensors, weight: int) -> int:
    """Row and column sums of the second moment in float32 (for vectors all of it), and the RMS of the weight."""
    if len(tensor.shape) < 2:
        return tensor.size * FP32 + COUNTER
    rows, columns = tensor.size // tensor.shape[-1], tensor.size // tensor.shape[-2]
    return (rows + columns) * FP32 + COUNTER


def _stable_adamw(tensor: Tensors, weight: int) -> int:
    """Two moments, in half precision also Kahan's compensation, and one scalar in the weight's dtype."""
    return tensor.size * weight * (2 if weight == FP32 else 3) + weight


SPECIAL: dict[str, Count] = {"muon": _muon, "adafactor": _adafactor, "stable_adamw": _stable_adamw}


def _bitsandbytes(tensor: Tensors, copies: int, bits: int) -> int:
    """transformers keeps states of embeddings in 32 bits, bitsandbytes of small tensors, whatever their dtype."""
    if bits == 32 or tensor.embedding or tensor.size < LEAST_QUANTIZED:
        return tensor.size * copies * FP32
    blocks = -(-tensor.size // BLOCK)
    return copies * (tensor.size + blocks * FP32)


def _torchao(tensor: Tensors, weight: int, bits: int) -> int:
    """Two moments, each with its lookup table; small tensors and those not divisible into blocks are as in torch."""
    if tensor.size < LEAST_QUANTIZED or tensor.size % BLOCK:
        return tensor.size * weight * 2 + COUNTER
    scales_and_table = (tensor.size // BLOCK + 2**bits) * FP32
    return 2 * (tensor.size * bits // 8 + scales_and_table) + COUNTER


def _orthogonalising(tensor: Tensors, weight: int) -> int:
    """The update in the weight's dtype, two copies in bfloat16, and two square products of the shorter side."""
    return tensor.size * (weight + 2 * 2) + 2 * 2 * min(tensor.shape) ** 2


def _rounds(optimizer: Optimizer) -> bool:
    stochastic = optimizer.option("bf16_stochastic_round") == "true"
    return stochastic and optimizer.name in ("adamw_torch", "adamw_torch_fused")


def _chunk(tensor: Tensors) -> int:
    row = max(1, tensor.size // max(1, tensor.shape[0])) if tensor.shape else 1
    return min(tensor.size, row * max(1, ROUNDED_AT_A_TIME // row))


def _all(tensors: Sequence[Tensors]) -> int:
    return sum(each.size * each.count for each in tensors)
