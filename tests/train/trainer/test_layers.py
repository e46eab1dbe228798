"""SFTTrainer's layers: each uses what it has itself or from those below, never what is in a layer above."""

from __future__ import annotations

import inspect
import re

import honed.train.trainer as room
from honed.train.trainer.trainer import SFTTrainer

LAYERS = [cls for cls in SFTTrainer.__mro__ if cls.__module__.startswith("honed.")]


def test_no_layer_uses_a_method_of_one_above() -> None:
    for place, layer in enumerate(LAYERS):
        used = set(re.findall(r"\bself\.(\w+)", inspect.getsource(layer)))
        above = {name for upper in LAYERS[:place] for name, value in vars(upper).items() if callable(value)}
        assert not {name for name in used & above if not hasattr(layer, name)}, layer.__name__


def test_the_layers_are_described_in_order() -> None:
    described = re.findall(r"^    (\w+Trainer) +(\w+)\.py ", room.__doc__ or "", flags=re.MULTILINE)
    assert described == [(layer.__name__, layer.__module__.rpartition(".")[2]) for layer in LAYERS]
