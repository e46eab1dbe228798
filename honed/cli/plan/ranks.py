"""`honed plan --gpus N`: memory, traffic and time of each way to train on several GPUs."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from honed.cli.machine import Machine
from honed.cli.plan.choices import Choice
from honed.errors import RecipeError

if TYPE_CHECKING:
    from honed.model.plan.ranks import Cluster, Prediction

# Bytes per second to another GPU of the node, in one direction, as published by the vendors: NVLink, else PCIe 4 x16.
PCIE = 32e9
LINKS = {"a100-40gb": 300e9, "a100-80gb": 300e9, "h100": 450e9, "h200": 450e9}
BANDWIDTH = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgtKMGT]?)(b|B)(?:ps|/s)$")
SCALES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankChoice:
    """A choice of the plan, run on a cluster in one way."""

    choice: Choice
    found: Prediction
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """The values for --json, in bytes and seconds."""
        found = self.found
        return {
            "name": self.choice.name,
            "way": found.way,
            "fits": self.fits,
            **found.estimate.as_dict(),
            "sent_bytes_per_gpu": found.sent,
            "collectives": [asdict(collective) for collective in found.collectives],
            "tokens_per_step": found.tokens,
            "seconds_compute": found.compute,
            "seconds_per_step": found.seconds,
            "seconds_per_step_nothing_hidden": found.seconds_exposed,
            "tokens_per_second": found.tokens_per_second,
            "efficiency": found.efficiency,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options for several GPUs."""
    parser.add_argument("--gpus", type=int, metavar="N", help="also plan N such GPUs: DDP, FSDP2, hybrid shards")
    parser.add_argument("--per-node", type=int, default=8, metavar="N", help="GPUs of a machine [8]")
    parser.add_argument(
        "--network",
        default="3200gbps",
        metavar="RATE",
        help="from a machine to others, all its network cards together: 400gbps, 50GB/s [3200gbps, 8 cards of 400]",
    )
    parser.add_argument("--link", metavar="RATE", help="from a GPU to others of its machine [NVLink's, or PCIe 32GB/s]")


def cluster(args: argparse.Namespace, on: Machine) -> Cluster:
    """Builds the cluster that the options describe.

    Raises:
        RecipeError: no GPU is named, or its speed is unknown.
    """
    from honed.model.plan.ranks import Cluster

    if on.device != "cuda":
        raise RecipeError("--gpus, and no GPU is named.", fix="name it, such as --gpu h100")
    if on.flops is None:
        raise RecipeError(f"--gpus needs the speed of {on.says}.", fix="name it (--gpu h100), or add --flops 400T")
    link = read_bandwidth(args.link, "--link") if args.link else LINKS.get(str(args.gpu).lower(), PCIE)
    network = read_bandwidth(args.network, "--network")
    return Cluster(gpus=args.gpus, per_node=args.per_node, link=link, network=network)


def read_bandwidth(text: str, option: str) -> float:
    """Parses bytes per second: "400gbps" and "50GB/s" are both 5e10; b means bits, B bytes.

    Raises:
        RecipeError: it cannot be parsed.
    """
    found = BANDWIDTH.match(text.strip())
    if found is None or float(found[1]) == 0:
        raise RecipeError(f"{option} is {text!r}.", fix="give bits per second (400gbps) or bytes (50GB/s)")
    return float(found[1]) * SCALES[found[2].upper()] / (8 if found[3] == "b" else 1)


def rank_choices(choices: list[Choice], on: Machine, over: Cluster, *, efficiency: float) -> list[RankChoice]:
    """Each choice in each way that the cluster allows."""
    from honed.model.plan.ranks import predict, ways_for

    found = [
        (choice, predict(choice.job, over, way, flops=on.flops or 0.0, efficiency=efficiency))
        for choice in choices
        for way in ways_for(choice.job, over)
    ]
    return [RankChoice(choice=c, found=p, fits=p.estimate.peak <= on.memory) for c, p in found]


def table(ranked: list[RankChoice]) -> list[tuple[str, ...]]:
    """Table rows: choice, memory, bytes sent, time with communication hidden and exposed, tokens, efficiency."""
    rows: list[tuple[str, ...]] = [("", "peak", "fits", "sent/GPU/step", "time/step", "tokens/s", "efficiency")]
    for one in ranked:
        low, high = one.found.efficiency
        rows.append(
            (
                f"{one.choice.name}, {one.found.way}",
                f"{one.found.estimate.peak / 1e9:,.2f} GB",
                "yes" if one.fits else "no",
                f"{one.found.sent / 1e9:,.2f} GB",
                _span(one.found.seconds, one.found.seconds_exposed),
                f"{one.found.tokens_per_second:,.0f}",
                f"{low:.0%} to {high:.0%}",
            )
        )
    return rows


def heading(over: Cluster) -> str:
    """The first line: the cluster."""
    place = "in one machine" if over.nodes == 1 else f"in {over.nodes:,} machines of {over.in_node}"
    network = "" if over.nodes == 1 else f", {over.network / 1e9:,.0f} GB/s from each machine to others"
    return f"{over.gpus:,} GPUs {place}; {over.link / 1e9:,.0f} GB/s from each GPU to others of its machine{network}:"


def notes(over: Cluster) -> list[str]:
    """The assumptions of the predictions."""
    return [
        f"Each GPU does rows of its own. {over.efficiency:.0%} of these bandwidths and NCCL's latencies are assumed.",
        "Times: with communication overlapped as far as possible, and not at all. No cluster was measured.",
    ]


def _span(low: float, high: float) -> str:
    return f"{low:,.1f} to {high:,.1f} s" if high >= 10 else f"{low * 1000:,.0f} to {high * 1000:,.0f} ms"
