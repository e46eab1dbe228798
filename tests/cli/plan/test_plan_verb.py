"""`honed plan`: the table, the recipe's lines, JSON, and what is refused."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from honed.cli.machine import Machine, read_rate, read_size
from honed.cli.plan.ranks import cluster, read_bandwidth
from honed.errors import RecipeError

pytest.importorskip("peft")


def test_what_fits(honed: Any) -> None:
    shown = honed("plan", "--model", "Qwen2.5-7B", "--gpu", "8GB", "--length", "512", "--flops", "100T")
    assert shown.status == 0, shown.err
    assert "7.62 billion parameters" in shown.out
    rows = {line[:22].strip(): line for line in shown.out.splitlines() if " GB  " in line}
    assert " no " in rows["full"] and " no " in rows["lora, checkpointing"] and " yes " in rows["qlora, checkpointing"]
    assert "quantization: nf4" in shown.out and "gradient_checkpointing: auto" in shown.out


def test_json_and_a_recipe(honed: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: Qwen3-0.6B\nlora: null\ndata: {max_length: 700}\n", encoding="utf-8")
    shown = honed("plan", recipe, "--gpu", "h100", "--json", "per_device_train_batch_size=2")
    assert shown.status == 0, shown.err
    found = json.loads(shown.out)
    mine = found["choices"][0]
    assert (mine["name"], mine["method"], mine["length"], mine["rows"]) == ("your recipe", "full", 700, 2)
    assert found["parameters"] == 596_049_920
    assert mine["peak_bytes"] == sum(mine["parts"].values()) and mine["seconds_per_step"] > 0
    assert found["recipe"] == "your recipe" and mine["fits"]


def test_the_optimizer_counts(honed: Any) -> None:
    given = ("plan", "--model", "Qwen3-0.6B", "--gpu", "80GB")
    found = {name: json.loads(honed(*given, "--optim", name, "--json").out) for name in ("sgd", "muon", "galore_adamw")}
    adamw = json.loads(honed(*given, "--json").out)
    states = {name: plan["choices"][0]["parts"]["optimizer"] for name, plan in [*found.items(), ("adamw", adamw)]}
    assert states["sgd"] == 0 < states["muon"] < states["adamw"] == states["galore_adamw"]
    assert adamw["optimizer_state_known"] and not found["galore_adamw"]["optimizer_state_known"]
    shown = honed(*given, "--optim", "galore_adamw").out
    assert (
        "the state of galore_adamw is not known, and counted as AdamW's" in shown and 'optim: "galore_adamw"' in shown
    )
    assert "GB of its state, counted here, can go to the host" in honed(*given, "--optim", "paged_adamw_8bit").out
    refused = honed(*given, "--optim", "adafactors")
    assert refused.status != 0 and "adafactor" in refused.err


def test_the_longest_row_ends_with_the_models_positions(honed: Any) -> None:
    shown = honed("plan", "--model", "smollm2-135m", "--gpu", "80GB", "--length", "9000")
    assert "  8,192 *  " in shown.out and "* 8,192 positions are all that the model has" in shown.out
    assert "Rows of 9,000 tokens are longer than the 8,192 positions" in shown.out
    found = json.loads(honed("plan", "--model", "smollm2-135m", "--gpu", "80GB", "--json").out)
    assert found["positions"] == 8192 == found["choices"][0]["longest_length"]


def test_a_model_may_stand_first(honed: Any) -> None:
    named = honed("plan", "--model", "Qwen3-0.6B", "--gpu", "24GB", "--length", "512")
    first = honed("plan", "Qwen/Qwen3-0.6B", "--gpu", "24GB", "--length", "512")
    assert first.status == 0, first.err
    assert first.out.replace("Qwen/Qwen3", "Qwen3") == named.out
    assert "your recipe" in honed("plan", "Qwen3-0.6B", "lora.r=8", "--gpu", "24GB").out


def test_what_is_neither_model_nor_recipe_is_refused_at_once(honed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "honed.train.options.optim", None)  # what takes seconds to import
    for given in (("plan", "lroa"), ("plan", "Qwen3-0.6B", "--model", "Qwen3-8B"), ("plan", "no/such.yaml")):
        refused = honed(*given)
        assert refused.status != 0 and ("for a model, --model NAME" in refused.err or "No such recipe" in refused.err)


def test_nothing_fits(honed: Any) -> None:
    shown = honed("plan", "--model", "Llama-3.3-70B", "--gpu", "24GB")
    assert shown.status == 0 and "Nothing fits." in shown.out


def test_the_words_of_a_recipe_are_one(honed: Any, tmp_path: Path) -> None:
    from honed.recipe import load_recipe

    shown = honed("plan", "--model", "Qwen3-8B", "--gpu", "24GB", "--length", "512")
    lines = shown.out.partition("In a recipe:\n")[2].partition("\n\n")[0]
    path = tmp_path / "shown.yaml"
    path.write_text("\n".join(line[2:] for line in lines.splitlines()), encoding="utf-8")
    assert load_recipe(path).data.max_length == 512


def test_several_gpus(honed: Any) -> None:
    given = ("plan", "--model", "Qwen3-8B", "--gpu", "h100", "--gpus", "16", "--network", "1600gbps")
    shown = honed(*given)
    assert shown.status == 0, shown.err
    assert "16 GPUs in 2 machines of 8; 450 GB/s from each GPU" in shown.out and "200 GB/s from each" in shown.out
    rows = {line[:27].strip(): line for line in shown.out.splitlines() if " GB  " in line}
    assert " no " in rows["full, ddp"] and " yes " in rows["full, fsdp"] and " yes " in rows["full, hybrid"]
    assert "No cluster was measured" in shown.out
    found = json.loads(honed(*given, "--json").out)["ranks"]
    one = next(one for one in found if (one["name"], one["way"]) == ("full", "fsdp"))
    assert one["sent_bytes_per_gpu"] == pytest.approx(3 * 15 / 16 * 2 * 8_190_735_360)
    assert one["peak_bytes"] == sum(one["parts"].values()) and one["tokens_per_step"] == 16 * 1024
    assert one["seconds_compute"] <= one["seconds_per_step"] <= one["seconds_per_step_nothing_hidden"]


def test_an_adapter_is_planned_with_its_base_and_its_options(
    honed: Any, train: Any, tmp_path: Path, model_folder: Path
) -> None:
    assert train("lora.r=3", "lora.target_modules=[q_proj]").status == 0
    shown = honed("plan", tmp_path / "run", "--gpu", "24GB")
    assert shown.status == 0, shown.err
    assert shown.out.startswith(f"{tmp_path / 'run'} holds an adapter of {model_folder}: planned is this model")
    base = ("plan", "--model", model_folder, "--gpu", "24GB", "--json")
    of_run = json.loads(honed("plan", tmp_path / "run", "--gpu", "24GB", "--json").out)
    assert of_run == json.loads(honed(*base, "lora.r=3", "lora.target_modules=[q_proj]").out)
    assert of_run["choices"] != json.loads(honed(*base).out)["choices"]
    refused = honed("plan", tmp_path / "run", "--gpu", "24GB", "lora.r=4")
    assert refused.status == 2 and "lora.r is 4, but the adapter in" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "h100", "--gpus", "0"), "1 or more"),
        (("--gpu", "h100", "--gpus", "12"), "8 or 16 GPUs"),
        (("--gpu", "h100", "--gpus", "8", "--per-node", "0"), "1 or more"),
        (("--gpu", "h100", "--gpus", "8", "--network", "fast"), "--network is 'fast'"),
        (("--gpu", "h100", "--gpus", "8", "--link", "0GB/s"), "50GB/s"),
        (("--gpu", "24GB", "--gpus", "8"), "--flops"),
        (("--model", "Qwen3-9B", "--gpu", "24GB"), "did you mean Qwen3-8B"),
        (("--gpu", "rtx-9999"), "rtx-4090"),
        (("--gpu", "24GB", "--flops", "fast"), "400T"),
        (("--gpu", "24GB", "--efficiency", "2"), "share"),
        (("--gpu", "24GB", "--length", "0"), "1 or more"),
    ],
)
def test_refused(honed: Any, arguments: tuple[str, ...], message: str) -> None:
    shown = honed("plan", *arguments)
    assert shown.status == 2 and message in shown.err


def test_several_gpus_need_a_gpu() -> None:
    with pytest.raises(RecipeError, match="no GPU is named"):
        cluster(Namespace(), Machine(device="cpu", memory=1e10, flops=1e11, says="this CPU"))


def test_bandwidths() -> None:
    assert read_bandwidth("400gbps", "--network") == read_bandwidth("50GB/s", "--network") == 50e9
    assert read_bandwidth("3.2Tbps", "--network") == 400e9


def test_sizes_and_rates() -> None:
    assert read_size("24GB") == read_size("24") == 24e9 and read_size("8 GiB") == 8 * 2**30
    assert read_rate("400T") == read_rate("4e14") == 4e14 and read_rate("1.5P") == 1.5e15
    for text in ("0GB", "many", "-3GB"):
        with pytest.raises(RecipeError):
            read_size(text)
