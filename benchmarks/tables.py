"""Writes the tables of docs/performance.md from the files in benchmarks/results, so that no number is copied by hand.

    python benchmarks/tables.py [--check]

Text between `<!-- table: NAME -->` and `<!-- end of table -->` in a page is replaced with the newest result of that
name (`NAME-<what it ran on>-<date>.json`; all, if several have the same date). `<!-- table: all -->` stands for every
name with a result; `summary` and `summary-zh` are the short tables of the READMEs. `--check` writes nothing, and fails
if a page is outdated.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGES = ("docs/performance.md", "README.md", "README.zh-CN.md")
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)
NAME = re.compile(r"(?P<of>.+?)-(?P<on>cpu|gpu|h100|h200)(?P<rest>.*)-(?P<date>\d{4}-\d\d-\d\d)")
Record = dict[str, Any]
TRAINERS = {
    "llamafactory": "LLaMA-Factory",
    "llamafactory-no-checkpointing": "LLaMA-Factory, activations kept,",
    "axolotl": "axolotl",
    "litgpt": "LitGPT",
    "torchtune": "torchtune",
    "minimind": "MiniMind's own script,",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = []
    for page in map(ROOT.joinpath, PAGES):
        before = page.read_text(encoding="utf-8")
        after = filled(before, page.parent)
        if after != before:
            stale.append(page.relative_to(ROOT).as_posix())
            if not args.check:
                page.write_text(after, encoding="utf-8")
    print("\n".join(f"{'not up to date' if args.check else 'written'}: {name}" for name in stale) or "all up to date")
    sys.exit(bool(stale) and args.check)


def filled(text: str, folder: Path) -> str:
    """The page with its tables regenerated; its links are relative to `folder`."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found[2], folder)}{found[3]}", text)


def block(name: str, folder: Path) -> str:
    if name in SUMMARIES:
        return f"{summary(SUMMARIES[name])}\n"
    names = [known for known in SECTIONS if newest(known)] if name == "all" else [name]
    parts = []
    for one in names:
        title, render = SECTIONS[one]
        if name == "all":
            parts.append(f"### {title}\n")
        for file in newest(one):
            record = json.loads(file.read_text(encoding="utf-8"))
            parts.append(f"{render(record, folder)}\n\n{source(file, record, folder)}\n")
    return "\n".join(parts)


def newest(name: str) -> list[Path]:
    """The results of this name with the latest date."""
    files = [(found["date"], file) for file in RESULTS.glob("*.json") if (found := NAME.fullmatch(file.stem))
             and found["of"] == name]  # fmt: skip
    last = max((day for day, _ in files), default="")
    return sorted(file for day, file in files if day == last)


def source(file: Path, record: Record, folder: Path) -> str:
    """Where the numbers come from, and what ran."""
    link = f"{'../' if folder != ROOT else ''}benchmarks/results/{file.name}"
    versions = ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items() if name != "honed")
    machine = record.get("machine", "")
    if isinstance(machine, dict):
        count = machine.get("threads", record.get("threads"))
        parts = [machine.get("processor"), machine.get("cores") and f"{machine['cores']} cores"]
        machine = ", ".join(filter(None, [*parts, count and f"{count} thread{'s' * (count > 1)} used"]))
    return f"From [{file.name}]({link}): {'; '.join(filter(None, [machine, versions]))}."


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; large numbers get thousands separators."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def data_preparation(record: Record, _: Path) -> str:
    head = ("rows", "how many", "honed, rows/s", "TRL, rows/s", "times as fast", "peak memory, GB",
            "two processes", "opened again, s")  # fmt: skip
    return table(head, [
        (f"{r['kind'].replace('_', ', ')}, {r['rows']}", r["count"], r["ours_rows_per_second"],
         r["trl_rows_per_second"], r["ratio"], f"{r['ours_peak_gb']} against {r['trl_peak_gb']}",
         f"{r['two_processes_over_one']} times one", r["seconds_to_open_again"])
        for r in record["results"]
    ])  # fmt: skip


def training_step(record: Record, _: Path) -> str:
    head = (
        "model",
        "honed, s",
        "TRL's best, s",
        "times as fast",
        "over TRL's default",
        "memory, TRL's best / honed",
        "without libraries",
    )
    return table(head, [
        (r["case"], r["seconds_per_step"]["honed"], f"{r['seconds_per_step'][r['best']]} ({r['best']})",
         r["speed_over_best"], r["speed_over_default"], round(1 / r["memory_of_best"], 2),
         round(1 / r["training_memory_of_best"], 2))
        for r in record["results"]
    ])  # fmt: skip


def other_trainers(record: Record, _: Path) -> str:
    head = (
        "trainer",
        "model",
        "honed, s",
        "theirs, s",
        "times as fast",
        "memory, theirs / honed",
        "norms of gradients differ by",
    )
    return table(head, [
        (f"{TRAINERS[side]} {r['version']}", r["case"], r["seconds_per_step"]["honed"], r["seconds_per_step"][side],
         speed, r["times_the_memory"][side], f"{r['differences_of_norms'][side]:.0e}")
        for r in record["results"] for side, speed in r["times_as_fast"].items()
    ])  # fmt: skip


def startup(record: Record, _: Path) -> str:
    head = ("vocabulary", "side, caches", "its time, s", "TRL, s", "times as fast", "by processor time")
    sides = {"trainer": "honed, trainer", "plain": "honed, plain", "bare": "transformers alone"}
    return table(head, [
        (f"{r['vocabulary']:,}", f"{name}, {r['caches']}", r["seconds"][side], r["seconds"]["trl"],
         r["ratio_of_seconds"][side], r["ratio_of_cpu_seconds"][side])
        for r in record["results"] for side, name in sides.items() if side in r["seconds"]
    ])  # fmt: skip


def generation(record: Record, _: Path) -> str:
    head = ("work", "format", "honed, tokens/s", "`generate`, tokens/s", "times as fast", "by processor time")
    return table(head, [
        (r["work"], record["dtype"], r["ours_tokens_per_second"], r["transformers_tokens_per_second"],
         r["ratio"], r["cpu_time_ratio"])
        for r in record["results"]
    ])  # fmt: skip


def attention(record: Record, _: Path) -> str:
    ways = ("honed", "dense", "slices", "padded", "blocks")
    head = ("documents in a row", "honed, ms", *(f"{way} / honed" for way in ways[1:]), "MB kept, dense")
    return table(head, [
        (r["case"], r["milliseconds"]["honed"], *(r["time_over_ours"][way] for way in ways[1:]),
         f"{r['kept_mb']['honed']}, {r['kept_mb']['dense']}")
        for r in record["results"]
    ])  # fmt: skip


def lora(record: Record, _: Path) -> str:
    head = ("work", "honed, ms", "peft, ms", "times as fast")
    return table(head, [(r["work"], r["honed_ms"], r["peft_ms"], r["ratio"]) for r in record["results"]])


def gemm_share(record: Record, _: Path) -> str:
    head = ("model", "tokens a step, trained", "s a step", "GEMM, GFLOP/s", "6 N tokens", "products actually computed")
    return table(head, [
        (r["case"], f"{r['tokens_per_step']:.0f}, {r['trained_per_step']:.0f}", r["seconds_per_step"],
         "; ".join(f"{way} {speed}" for way, speed in r["gemm_gflops"].items()),
         f"{r['share']['six_n_tokens']:.0%}", f"{r['share']['done']:.0%}")
        for r in record["results"]
    ])  # fmt: skip


def head(record: Record, _: Path) -> str:
    sides = [side for side in dict.fromkeys(side for r in record["results"] for side in r["ms"]) if side != "honed"]
    head = ("head: hidden size x vocabulary", "tokens", "honed, ms", "MB", *(f"{side}: time, memory" for side in sides))
    rows = [
        (f"{r['case']}: {r['hidden']:,} x {r['vocabulary']:,}", r["tokens"], r["ms"]["honed"], r["peak_mb"]["honed"],
         *(both_over_ours(r, side) for side in sides))
        for r in record["results"]
    ]  # fmt: skip
    note = "Time and memory of the others are relative to honed's; `-`: not run, or it has no soft-capping."
    if record["device"] == "cpu":
        note += " Part of the gain in time is due to oneDNN, which computes honed's products (see the GEMM speeds)."
    return f"{table(head, rows)}\n\n{note}"


def both_over_ours(result: Record, side: str) -> str:
    ratios = [result[key].get(side) for key in ("time_over_ours", "memory_over_ours")]
    return "-" if None in ratios else "; ".join(map(str, ratios))


def gpu_training(record: Record, _: Path) -> str:
    parts = []
    for r in record["results"]:
        head = (r["case"], "ms a step", "tokens/s", "peak, GB", "MFU", "with attention", "of GEMM", "gradients")
        rows = [
            (side, one["ms"], one["tokens_per_second"], one["peak_gb"], share(one, "mfu_of_data_sheet", "six_n_tokens"),
             share(one, "mfu_of_data_sheet", "with_attention"), share(one, "mfu_of_gemm", "six_n_tokens"), agrees(one))
            for side, one in r["sides"].items()
        ]  # fmt: skip
        best = f"TRL's best is {r['best']['trl']}, honed's {r['best']['honed']}"
        said = f"{best}: {r['speed_best']} times as fast in {r['memory_best']} of its memory."
        published = [
            f"{name} publishes {speed:,} tokens/s." for name, speed in r["published_tokens_per_second"].items()
        ]
        absent = [f"Not run: {'; '.join(f'{side} ({why})' for side, why in r['not_run'].items())}."] * bool(
            r["not_run"]
        )
        parts += [table(head, rows), " ".join([said if r["speed_best"] else "No ratio.", *published, *absent])]
    return "\n\n".join(parts)


def share(one: Record, key: str, convention: str) -> str:
    return f"{one[key][convention]:.1%}" if one[key] else "-"


def agrees(one: Record) -> str:
    return f"not the same: {', '.join(one['differs'])}" if one["differs"] else "agree"


def moe_dispatch(record: Record, _: Path) -> str:
    sides = ("loop", "mixtral_eager", "mixtral_grouped_mm")
    head = ("experts", "routing", "honed, ms", *(f"{side.replace('_', ', ')} / honed" for side in sides))
    return table(head, [
        (r["experts"], r["routing"], r["honed_ms"], *(r[f"{side}_ratio"] for side in sides)) for r in record["results"]
    ])  # fmt: skip


def shared_prefix(record: Record, _: Path) -> str:
    head = (
        "model",
        "tokens of each",
        "shared, s",
        "unshared, s",
        "TRL's fastest, s",
        "over TRL's fastest",
        "over unshared",
        "ratio of products",
        "ratio of tokens",
    )
    return table(head, [
        (r["case"], r["tokens_each"], r["seconds"]["honed shared"], r["seconds"]["honed unshared"],
         f"{r['seconds'][r['fastest_trl']]} ({r['fastest_trl']})", r["speedup_over_fastest_trl"],
         r["speedup_over_unshared"], r["ratio_of_products"], r["ratio_of_tokens"])
        for r in record["results"]
    ])  # fmt: skip


def plan_accuracy(record: Record, _: Path) -> str:
    head = ("configuration", "predicted, GB", "measured, GB", "off by")
    return table(head, [
        (r["case"] + (" (fake tensors)" if r["fake"] else ""), f"{r['predicted'] / 1e9:.3f}",
         f"{r['measured'] / 1e9:.3f}", f"{r['predicted'] / r['measured'] - 1:+.1%}")
        for r in record["rows"]
    ])  # fmt: skip


def soak(record: Record, _: Path) -> str:
    head = (f"of {record['steps']:,} steps", "after the warm-up", "at the end", "grew by", "may grow by")
    names = {"memory_mb": "memory, MB", "open_files": "open files", "yardsticks_per_step": "a step / a fixed forward"}
    rows = []
    for key, name in names.items():
        found = record[key]
        grew = found.get("growth", found["end"] / found["after_warm_up"] - 1)
        rows.append((name, found["after_warm_up"], found["end"], f"{grew:.1%}", f"{found.get('bound', 0):.0%}"))
    return table(head, rows)


def growth(record: Record, folder: Path) -> str:
    head = ("cost", "against", "theory", "smallest", "largest", "largest deviation from the line")
    rows = [
        (f"{r['title']}, {r['unit']}", r["x"], r["theory"], *ends(r["points"]), f"{r['worst']:.1%}")
        for r in record["results"]
    ]
    images = f"{'docs/' if folder == ROOT else ''}images"
    drawn = [f"![{r['title']} against {r['x']}]({images}/growth-{r['name']}.svg)" for r in record["results"]]
    return "\n\n".join([table(head, rows), *drawn])


def ends(points: list[list[float]]) -> list[str]:
    return [f"{size:,}: {value}" for size, value in (points[0], points[-1])]


def summary(words: dict[str, str]) -> str:
    """Only the ratios, for benchmarks with a result."""
    rows: list[tuple[str, str, str]] = []
    for record in records("data-preparation"):
        found = {r["kind"]: r["ratio"] for r in record["results"] if r["rows"] == "repeated"}
        ratios = (found[kind] for kind in ("prompt_completion", "messages", "text"))
        rows.append((words["rows"], "TRL 1.16", joined(ratios)))
    for record in records("training-step"):
        for r in record["results"]:
            both = joined((r["speed_over_best"], r["speed_over_default"]))
            rows.append((words[r["case"]], words["settings"], both))
    for record in records("other-trainers"):
        for r in record["results"]:
            best = min(r["times_as_fast"].values())
            name = "minimind" if r["trainer"] == "minimind" else "smollm2-135m"
            rows.append((words[name], f"{TRAINERS[r['trainer']].removesuffix(',')} {r['version']}", f"{best:.1f}"))
    for record in records("shared-prefix"):
        rows.append((words["prefix"], words["best"], joined(r["speedup_over_fastest_trl"] for r in record["results"])))
    for record in records("startup"):
        for r in record["results"]:
            if r["caches"] == "warm":
                ratios = (r["ratio_of_seconds"][engine] for engine in ("trainer", "plain"))
                rows.append((f"{words['startup']} {r['vocabulary']:,}", words["best"], joined(ratios)))
    for record in records("generation"):
        if record["dtype"] == "float32" and record["threads"] == 1:
            found = {r["work"]: r["ratio"] for r in record["results"]}
            rows.append((words["generation"], "`generate`", joined(found[w] for w in ("skewed", "natural", "equal"))))
    return table((words["work"], words["against"], words["times"]), rows)


def records(name: str) -> list[Record]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in newest(name)]


def joined(ratios: Iterable[float]) -> str:
    return "; ".join(f"{ratio:.1f}" for ratio in ratios)


SUMMARIES = {
    "summary": {
        "work": "work", "against": "against", "times": "times as fast", "best": "TRL 1.16, its best setting",
        "settings": "TRL 1.16, its best setting; its default",
        "rows": "52,000 rows to tokens: prompt and completion; messages; packed text",
        "head-heavy": "a training step: small model, vocabulary 151,936", "smollm2-135m": "SmolLM2-135M's shape",
        "minimind": "MiniMind's shape", "smollm2-135m-lora": "SmolLM2-135M's shape, LoRA",
        "prefix": "8 answers to each question, as long as an answer: SmolLM2-135M's shape; MiniMind's",
        "startup": "from the command to the first step, both engines, vocabulary",
        "generation": "16 answers of skewed lengths; of natural ones; of equal ones",
    },
    "summary-zh": {
        "work": "工作", "against": "对比", "times": "倍数", "best": "TRL 1.16 的最佳设置",
        "settings": "TRL 1.16 的最佳设置；其默认设置",
        "rows": "5.2 万行变成 token：prompt + completion；messages；打包的纯文本",
        "head-heavy": "训练一步：小模型，词表 151,936", "smollm2-135m": "SmolLM2-135M 的形状",
        "minimind": "MiniMind 的形状", "smollm2-135m-lora": "SmolLM2-135M 的形状，LoRA",
        "prefix": "每个问题 8 个回答，问题与每个回答一样长：SmolLM2-135M 的形状；MiniMind 的形状",
        "startup": "从命令到第一步：两种引擎，词表",
        "generation": "16 个回答：长短不一；自然结束；长度相同",
    },
}  # fmt: skip

SECTIONS: dict[str, tuple[str, Callable[[Record, Path], str]]] = {
    "startup": ("From the command to the first step", startup),
    "data-preparation": ("From rows to tokens", data_preparation),
    "training-step": ("A training step", training_step),
    "other-trainers": ("A training step of other trainers", other_trainers),
    "gemm-share": ("Share of the machine's GEMM speed", gemm_share),
    "gpu-training": ("Training on a GPU", gpu_training),
    "head": ("The LM head alone", head),
    "attention": ("Attention over packed rows", attention),
    "shared-prefix": ("Answers that share a question", shared_prefix),
    "lora": ("LoRA layers as one function", lora),
    "moe-dispatch": ("A mixture-of-experts layer", moe_dispatch),
    "generation": ("Generation", generation),
    "plan-accuracy": ("What `honed plan` predicts", plan_accuracy),
    "growth": ("How cost grows", growth),
    "soak": ("A long run", soak),
}


if __name__ == "__main__":
    main()
