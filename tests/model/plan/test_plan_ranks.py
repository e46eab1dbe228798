"""Several GPUs: cases worked out by hand, the limits, and what must hold for any cluster."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from honed.errors import RecipeError
from honed.model.plan import plan
from honed.model.plan.optimizers import Optimizer
from honed.model.plan.ranks import WAYS, Cluster, Collective, Prediction, estimate_of, predict, ways_for
from honed.model.plan.step_time import seconds_per_step

JOB = plan.job_for("Qwen3-0.6B", method="full", length=512)  # 596,049,920 weights, 28 layers, tied head
PARAMETERS, EMBEDDING, LAYERS = 596_049_920, 151_936 * 1024, 28
NO_WAIT: dict[str, float] = {"efficiency": 1.0, "start": 0.0, "hop": 0.0, "network_hop": 0.0}


def cluster(gpus: int, **more: Any) -> Cluster:
    return Cluster(**{"gpus": gpus, "link": 100e9, "network": 50e9, **more})


def test_ddp_by_hand() -> None:
    """4 bytes for each weight's gradient; each of 8 GPUs sends 2 x 7/8 of them over a link of 100 GB/s."""
    found = predict(JOB, cluster(8, **NO_WAIT), "ddp", flops=1e15)
    assert found.sent == pytest.approx(2 * 7 / 8 * 4 * PARAMETERS)
    talk = found.sent / 100e9
    alone = seconds_per_step(JOB, 1e15)
    assert found.seconds_exposed == pytest.approx(alone + talk)
    assert found.seconds == pytest.approx(alone + talk - alone / 2)  # talk is longer than the backward pass
    assert found.tokens == 8 * 512 and found.tokens_per_second == pytest.approx(8 * 512 / found.seconds)


def test_fsdp_by_hand() -> None:
    """Weights twice and gradients once, 2 bytes each, 15/16 of them, over a network slower than the link."""
    found = predict(replace(JOB, accumulation=3), cluster(16, **NO_WAIT), "fsdp", flops=1e15)
    assert found.sent == pytest.approx((2 * 3 + 1) * 15 / 16 * 2 * PARAMETERS)
    assert found.seconds_exposed - found.compute == pytest.approx(found.sent / 50e9)


def test_hybrid_by_hand() -> None:
    """Inside a node as FSDP over 8; then a node's 8 GPUs share its network for 1/8 of the gradients each."""
    found = predict(JOB, cluster(32, **NO_WAIT), "hybrid", flops=1e15)
    inside, among = 3 * 7 / 8 * 2 * PARAMETERS, 2 * 3 / 4 * 2 * PARAMETERS / 8
    assert found.sent == pytest.approx(inside + among)
    assert found.seconds_exposed - found.compute == pytest.approx(inside / 100e9 + among / (50e9 / 8))


def test_an_adapter_moves_little_and_its_frozen_weights_much() -> None:
    pytest.importorskip("peft")
    job = plan.job_for("Qwen3-0.6B", method="lora", length=512)
    assert job.adapter is not None
    adapter = job.adapter.weights
    assert predict(job, cluster(8), "ddp", flops=1e15).sent == pytest.approx(2 * 7 / 8 * 4 * adapter)
    moved = 7 / 8 * 2 * (2 * (PARAMETERS + adapter) + adapter)
    assert predict(job, cluster(8), "fsdp", flops=1e15).sent == pytest.approx(moved)


def test_latencies_by_hand() -> None:
    """4 nodes of 8: a ring of 31 hops, 3 of them over the network; a tree of 7 hops and 2 levels, up and down."""
    on = cluster(32, start=1.0, hop=10.0, network_hop=1000.0)
    ring = Collective(kind="all-gather", size=0.0, calls=2, ranks=32, nodes=4)
    tree = Collective(kind="all-reduce", size=0.0, calls=1, ranks=32, nodes=4)
    assert ring.seconds(on) == 2 * (1 + 28 * 10 + 3 * 1000)
    assert tree.seconds(on) == 1 + 2 * (7 * 10 + 2 * 1000)


def test_sharded_memory_by_hand() -> None:
    """12 bytes a weight and 4 of gradient in 64 pieces; whole, in 2 bytes: two layers, the embedding, and gradients of
    one layer and the embedding."""
    on, layer = cluster(64), (PARAMETERS - EMBEDDING) / LAYERS
    at_end = estimate_of(JOB, on, "fsdp").moments["gradients"]
    assert at_end.weights == pytest.approx(4 * PARAMETERS / 64 + 2 * (2 * layer + EMBEDDING), abs=2)
    counters = 4 * sum(tensors.count for tensors in JOB.trained)  # of AdamW's steps
    assert at_end.optimizer == pytest.approx((8 * PARAMETERS + counters) / 64, abs=2)
    assert at_end.gradients == pytest.approx(4 * PARAMETERS / 64 + 2 * (layer + EMBEDDING), abs=2)
    assert estimate_of(JOB, on, "fsdp").moments["last_layer"].gradients <= at_end.gradients
    hybrid = estimate_of(JOB, on, "hybrid").moments["gradients"]
    assert hybrid.optimizer == pytest.approx(PARAMETERS + counters / 8, abs=2)  # over the 8 GPUs of a node


def test_ddp_holds_gradients_twice() -> None:
    alone, among = plan.estimate(JOB).moments["gradients"], estimate_of(JOB, cluster(8), "ddp").moments["gradients"]
    assert among.gradients == 2 * alone.gradients and among.total > alone.total
    assert (among.weights, among.optimizer, among.working) == (alone.weights, alone.optimizer, alone.working)


@pytest.mark.parametrize("way", WAYS)
def test_one_gpu_is_the_plan_without_others(way: str) -> None:
    found = predict(JOB, cluster(1), way, flops=1e15)
    assert found.estimate == plan.estimate(JOB) and found.sent == 0
    assert found.seconds == found.seconds_exposed == seconds_per_step(JOB, 1e15)


CLUSTERS = {
    "gpus": st.sampled_from([2, 4, 8, 16, 64, 1024]),
    "link": st.floats(1e9, 1e12),
    "network": st.floats(1e8, 1e12),
}


@pytest.mark.parametrize("way", WAYS)
@given(gpus=CLUSTERS["gpus"])
def test_without_a_price_of_talking_it_scales_linearly(way: str, gpus: int) -> None:
    free = cluster(gpus, link=math.inf, network=math.inf, **NO_WAIT)
    found = predict(JOB, free, way, flops=1e15)
    alone = predict(JOB, cluster(1), way, flops=1e15)
    assert found.tokens_per_second == pytest.approx(gpus * alone.tokens_per_second)
    assert found.efficiency == (1.0, 1.0)


@pytest.mark.parametrize("way", WAYS)
@given(**CLUSTERS, factor=st.floats(1.0, 100.0))
def test_better_is_never_slower(way: str, gpus: int, link: float, network: float, factor: float) -> None:
    def at(gpus: int = gpus, link: float = link, network: float = network) -> Prediction:
        return predict(JOB, cluster(gpus, link=link, network=network), way, flops=1e15)

    found, bigger = at(), at(gpus=2 * gpus)
    for better in (at(link=link * factor), at(network=network * factor)):
        assert better.seconds <= found.seconds and better.seconds_exposed <= found.seconds_exposed
    assert found.compute <= found.seconds <= found.seconds_exposed
    assert 0 < found.efficiency[0] <= found.efficiency[1] <= 1
    assert bigger.seconds >= found.seconds or way == "hybrid"  # its smallest clusters shard over fewer GPUs
    if way == "fsdp":
        assert bigger.estimate.peak <= found.estimate.peak


def test_ways() -> None:
    assert ways_for(JOB, cluster(1)) == ("ddp",)
    assert ways_for(JOB, cluster(8)) == ("ddp", "fsdp")
    assert ways_for(JOB, cluster(64)) == WAYS
    quantised = replace(JOB, quantization="nf4")
    assert ways_for(quantised, cluster(64)) == ("ddp",)
    with pytest.raises(RecipeError, match="quantised"):
        predict(quantised, cluster(64), "fsdp", flops=1e15)
    muon = replace(JOB, optimizer=Optimizer(name="muon"))
    assert ways_for(muon, cluster(64)) == ("ddp",)
    with pytest.raises(RecipeError, match="muon needs whole weights"):
        predict(muon, cluster(64), "fsdp", flops=1e15)
    with pytest.raises(RecipeError, match="optimizer_in_backward"):
        predict(replace(JOB, optimizer=Optimizer(in_backward=True)), cluster(8), "ddp", flops=1e15)
    with pytest.raises(RecipeError, match="hybrid"):
        predict(JOB, cluster(64), "zero3", flops=1e15)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gpus": 0}, "1 or more"),
        ({"per_node": 0}, "1 or more"),
        ({"gpus": 12}, "8 or 16 GPUs"),
        ({"link": 0.0}, "bandwidth"),
        ({"network": -1.0}, "bandwidth"),
        ({"efficiency": 1.5}, "bandwidth"),
    ],
)
def test_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        cluster(**{"gpus": 8, **wrong})
