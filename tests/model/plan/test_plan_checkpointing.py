"""The fewest layers that make a step fit. What a recomputed layer keeps: see test_plan_activations.py."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from honed.model.plan import plan
from honed.model.plan.checkpointing import fewest, libraries_bytes, loaded_bytes, with_layers
from honed.model.plan.step_time import flops_per_step

SHAPE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "num_attention_heads": 4}
CONFIG = LlamaConfig(vocab_size=64, tie_word_embeddings=True, **SHAPE)
JOB = plan.job_for(CONFIG, method="full", length=4096, device="cpu")


@given(st.integers(0, 2 * plan.estimate(JOB).peak), st.integers(0, plan.GB))
def test_it_is_the_fewest_that_fits(memory: int, there: int) -> None:
    found = fewest(JOB, memory, there=there)
    needs = [plan.estimate(with_layers(JOB, n)).peak - there for n in range(7)]
    fitting = [n for n in range(7) if needs[n] <= memory]
    assert (found.layers, found.fits) == (min(fitting, default=6), bool(fitting))
    assert (found.needs, found.without) == (needs[found.layers], needs[0])


def test_operations_grow_by_the_forward_pass_of_each_layer() -> None:
    all_of_them = flops_per_step(replace(JOB, checkpointing=True)) / flops_per_step(JOB) - 1
    half = fewest(JOB, plan.estimate(with_layers(JOB, 3)).peak)
    assert half.layers == 3 and abs((half.operations - 1) / all_of_them - 0.5) < 1e-9


def test_all_layers_are_what_checkpointing_always_meant() -> None:
    assert plan.estimate(with_layers(JOB, 6)) == plan.estimate(replace(JOB, checkpointing=True))
    assert plan.estimate(with_layers(JOB, 0)) == plan.estimate(JOB)


def test_what_is_there_already() -> None:
    parts = plan.estimate(JOB).parts
    assert loaded_bytes(JOB) == parts.weights + libraries_bytes(JOB)
    assert libraries_bytes(JOB) == parts.overhead
