"""Predicts a step on many GPUs: memory per GPU, bytes sent, and time.

    found = predict(job, Cluster(gpus=64, link=450e9, network=400e9), "fsdp", flops=989e12)
    found.seconds, found.seconds_exposed, found.estimate.peak, found.sent

`job` is the work of one GPU. More GPUs process more rows per step (weak scaling), ideally in the same time.

Each collective sends a share of its tensor of S bytes over a ring of n GPUs (nccl-tests, doc/PERFORMANCE.md):

    all-reduce  2 (n - 1) / n S          all-gather, reduce-scatter  (n - 1) / n S

over the slower of the link within a node and the node's network, plus a latency. Latencies follow NCCL's tuning model
(src/graph/tuning.cc): a ring has n - 1 hops, `nodes` - 1 of them over the network; the tree of an all-reduce has
log2(nodes) levels of network, up and down.

    ddp     one all-reduce of the trained weights' gradients per step
    fsdp    for each micro-batch two all-gathers of all weights, including frozen ones (forward, backward); per step one
            reduce-scatter of the gradients; each a collective per layer (Zhao et al., arXiv:2304.11277)
    hybrid  the same within each node, then an all-reduce of each shard of the gradients among nodes

None of this was measured on a cluster, so there are two times: `seconds` hides as much communication as torch could
(DDP behind half of the last micro-batch's compute, its backward pass; FSDP behind all of it), `seconds_exposed` none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from honed.errors import RecipeError
from honed.model.plan import plan
from honed.model.plan.job import Job
from honed.model.plan.plan import Estimate, Moment
from honed.model.plan.step_time import EFFICIENCY, seconds_per_step

WAYS = ("ddp", "fsdp", "hybrid")
LINK_EFFICIENCY = 0.8  # assumed fraction of a link's bandwidth that collectives reach; not measured
# Seconds in NCCL's model of the Simple protocol: to start a collective, per hop within a node, per hop between nodes.
START, HOP, NETWORK_HOP = 8.4e-6, 3.4e-6, 14e-6
DDP_BUCKET = 25 << 20  # bytes of gradients per all-reduce: `bucket_cap_mb` of DistributedDataParallel
DDP_WINDOW = 0.5  # of a micro-batch's compute: the backward pass is at least half of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """GPUs in nodes of equal size.

    Attributes:
        gpus, per_node: in total, and per node; fewer GPUs than `per_node` form one node.
        link: bytes per second that a GPU sends within its node, in one direction.
        network: bytes per second that a node sends through all its network cards, in one direction.
        efficiency: fraction of both that collectives reach.
        start, hop, network_hop: latencies in seconds.

    Raises:
        RecipeError: a number below 1, a bandwidth of 0 or less, or GPUs that do not fill their nodes.
    """

    gpus: int
    link: float
    network: float
    per_node: int = 8
    efficiency: float = LINK_EFFICIENCY
    start: float = START
    hop: float = HOP
    network_hop: float = NETWORK_HOP

    def __post_init__(self) -> None:
        if min(self.gpus, self.per_node) < 1:
            raise RecipeError(f"{self.gpus} GPUs, {self.per_node} in a node.", fix="give 1 or more of both")
        if self.gpus > self.per_node and self.gpus % self.per_node:
            below = self.gpus // self.per_node * self.per_node
            raise RecipeError(
                f"{self.gpus} GPUs do not fill nodes of {self.per_node}.",
                fix=f"give {below} or {below + self.per_node} GPUs, or another number in a node (--per-node)",
            )
        if not (self.link > 0 and self.network > 0 and 0 < self.efficiency <= 1):
            raise RecipeError("A bandwidth is 0 or below, or its share not in (0, 1].", fix="give more than 0")

    @property
    def nodes(self) -> int:
        return max(1, self.gpus // self.per_node)

    @property
    def in_node(self) -> int:
        """The number of GPUs used per node."""
        return self.gpus // self.nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One kind of collective in a step.

    Attributes:
        kind: "all-reduce", "all-gather" or "reduce-scatter".
        size: bytes of the whole tensors.
        calls: number of collectives.
        ranks, nodes: those of the group that takes part.
        beside: groups that do the same at the same time in each node and share its network.
    """

    kind: str
    size: float
    calls: int
    ranks: int
    nodes: int
    beside: int = 1

    @property
    def sent(self) -> float:
        """Bytes that each GPU sends."""
        return (2 if self.kind == "all-reduce" else 1) * (self.ranks - 1) / self.ranks * self.size

    def seconds(self, on: Cluster) -> float:
        """Returns the time of all calls, one after the other."""
        bandwidth = on.link if self.ranks > self.nodes else math.inf
        if self.nodes > 1:
            bandwidth = min(bandwidth, on.network / self.beside)
        return self.sent / (bandwidth * on.efficiency) + self.calls * self._latency(on)

    def _latency(self, on: Cluster) -> float:
        if self.ranks == 1:
            return 0.0
        if self.kind == "all-reduce":
            return on.start + 2 * ((self.ranks // self.nodes - 1) * on.hop + math.log2(self.nodes) * on.network_hop)
        return on.start + (self.ranks - self.nodes) * on.hop + (self.nodes - 1) * on.network_hop


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A job on a cluster.

    Attributes:
        way: one of `WAYS`.
        estimate: memory per GPU.
        collectives: the collectives of a step.
        tokens: tokens per step, on all GPUs, if all rows are full.
        compute: seconds of a step that a GPU computes.
        seconds, seconds_exposed: seconds per step, with communication hidden as far as possible, and with none hidden.
    """

    way: str
    on: Cluster
    estimate: Estimate
    collectives: tuple[Collective, ...]
    tokens: int
    compute: float
    seconds: float
    seconds_exposed: float

    @property
    def sent(self) -> float:
        """Bytes that each GPU sends in a step."""
        return sum(collective.sent for collective in self.collectives)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all GPUs, with communication hidden."""
        return self.tokens / self.seconds

    @property
    def efficiency(self) -> tuple[float, float]:
        """The fraction of linear scaling: with nothing hidden, and with all that can be."""
        return self.compute / self.seconds_exposed, self.compute / self.seconds


def predict(job: Job, on: Cluster, way: str, *, flops: float, efficiency: float = EFFICIENCY) -> Prediction:
    """Predicts a step of the job on each GPU of a cluster; see `seconds_per_step` for `flops` and `efficiency`.

    Raises:
        RecipeError: see `check_way`; also for optimizer_in_backward on several GPUs.
    """
    check_way(job, way)
    if job.optimizer.in_backward and on.gpus > 1:
        raise RecipeError(
            "optimizer_in_backward steps before GPUs share gradients.", fix="plan one GPU, or leave it out"
        )
    moved = tuple(_collectives(job, on, way)) if on.gpus > 1 else ()
    compute = seconds_per_step(job, flops, efficiency=efficiency)
    talk = sum(collective.seconds(on) for collective in moved)
    window = DDP_WINDOW * compute / job.accumulation if way == "ddp" else compute
    return Prediction(
        way=way,
        on=on,
        estimate=estimate_of(job, on, way),
        collectives=moved,
        tokens=on.gpus * job.tokens * job.accumulation,
        compute=compute,
        seconds=compute + max(0.0, talk - window),
        seconds_exposed=compute + talk,
    )


def ways_for(job: Job, on: Cluster) -> tuple[str, ...]:
    """Returns the ways for this job and cluster: no sharding with quantised weights or Muon, no hybrid in one node."""
    if job.quantization is not None or job.optimizer.alone or on.gpus == 1:
        return ("ddp",)
    return WAYS if on.nodes > 1 else ("ddp", "fsdp")


def check_way(job: Job, way: str) -> None:
    """Refuses what cannot be planned.

    Raises:
        RecipeError: there is no such way, or it shards quantised weights or Muon's matrices.
    """
    if way not in WAYS:
        raise RecipeError(f"way is {way!r}.", fix=f"known are {', '.join(WAYS)}")
    if job.quantization is not None and way != "ddp":
        raise RecipeError("Sharding of quantised weights is not planned.", fix="plan ddp, or leave quantization out")
    if job.optimizer.alone and way != "ddp":
        raise RecipeError(
            f"{job.optimizer.name} needs whole weights, not shards.", fix="plan ddp, or another optimizer"
        )


def estimate_of(job: Job, on: Cluster, way: str) -> Estimate:
    """Predicts memory per GPU.

    DDP has a copy of all gradients in its buckets. FSDP has 1/n of weights, gradients and optimizer states, and gathers
    two layers at a time (the next one is prefetched), embedding and head, and a layer's gradients. Between the
    micro-batches of a step gradients stay unsharded, because accelerate reduces them only in the last one.
    """
    alone = plan.estimate(job)
    if on.gpus == 1:
        return alone
    if way == "ddp":
        buckets = job.trained_bytes
        moments = {name: replace(m, gradients=m.gradients + buckets) for name, m in alone.moments.items()}
    else:
        # Gathered weights have the dtype of products, so nothing is cast.
        cast = plan.estimate(replace(job, formats=replace(job.formats, weight=job.formats.compute)))
        shards = on.gpus if way == "fsdp" else on.in_node
        moments = {name: _sharded(job, name, m, cast.moments[name], shards) for name, m in alone.moments.items()}
    return Estimate(moments={name: plan.with_overhead(job, moment) for name, moment in moments.items()})


def _sharded(job: Job, name: str, whole: Moment, cast: Moment, shards: int) -> Moment:
    sizes, c = job.sizes, job.formats.compute
    ends = sizes.embedding + sizes.head
    adapter = job.adapter.weights if job.adapter is not None else 0
    layer = (sizes.parameters - ends + adapter) / sizes.layers
    if name == "step":  # nothing is gathered
        return Moment(**{part: math.ceil(size / shards) for part, size in asdict(whole).items()})
    trained_layer, trained_ends = (layer, ends) if job.adapter is None else (adapter / sizes.layers, 0)
    gradients = cast.gradients + trained_layer * c
    if name in ("last_layer", "gradients"):  # in the last micro-batch, the other layers' are already reduced
        unreduced = cast.gradients if job.accumulation > 1 else (trained_layer + trained_ends) * c
        gradients = whole.gradients / shards + unreduced
    return replace(
        cast,
        weights=math.ceil(whole.weights / shards + (2 * layer + ends) * c),
        adapter=math.ceil(whole.adapter / shards),
        gradients=math.ceil(gradients),
        optimizer=math.ceil(whole.optimizer / shards),
    )


def _collectives(job: Job, on: Cluster, way: str) -> Iterator[Collective]:
    sizes, c = job.sizes, job.formats.compute
    if way == "ddp":
        size = job.trained_bytes
        calls = math.ceil(size / DDP_BUCKET)
        yield Collective(kind="all-reduce", size=size, calls=calls, ranks=on.gpus, nodes=on.nodes)
        return
    adapter = job.adapter.weights if job.adapter is not None else 0
    trained = job.trained_weights
    units = sizes.layers + 1  # one collective per layer, and one for embedding, head and last norm
    ranks, nodes = (on.gpus, on.nodes) if way == "fsdp" else (on.in_node, 1)
    gathers = 2 * job.accumulation
    weights = (sizes.parameters + adapter) * c
    yield Collective(kind="all-gather", size=gathers * weights, calls=gathers * units, ranks=ranks, nodes=nodes)
    yield Collective(kind="reduce-scatter", size=trained * c, calls=units, ranks=ranks, nodes=nodes)
    if way == "hybrid":
        piece = trained * c / ranks
        yield Collective(kind="all-reduce", size=piece, calls=units, ranks=on.nodes, nodes=on.nodes, beside=on.in_node)
