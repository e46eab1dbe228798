"""Two processes train and evaluate what one does, under DDP and FSDP2, all weights and LoRA, to 1e-6 in float32.

Rows are packed and of uneven length, so the ranks have different numbers of tokens in each of two micro-batches.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from program import logits_of, make_model
from transformers import AutoModelForCausalLM

from honed.model.export.export import Probe, export
from honed.train.run_folder.checkpoint import check

if TYPE_CHECKING:
    from conftest import Ended, Ranks

long = pytest.mark.skipif(not os.environ.get("HONED_FAULTS"), reason="a long one: HONED_FAULTS=1, or `make faults`")
FSDP = {"fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}
IN_PARTS = {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
SAVES = {"save_strategy": "steps", "save_steps": 1}
ALONE = {"gradient_accumulation_steps": 4}
UNEVEN = 5  # rows to evaluate on: two ranks with batches of two are three rows short


def same_weights(found: Ended, wanted: Ended, bound: float = 1e-6) -> None:
    ours, theirs = found.weights(), wanted.weights()
    assert theirs.keys() <= ours.keys()
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).norm()) <= bound * float(tensor.norm()), name


def same_steps(found: Ended, wanted: Ended) -> None:
    """Every logged line of training."""
    assert len(found.steps()) == len(wanted.steps()) >= 2
    for line, other in zip(found.steps(), wanted.steps(), strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy"):
            # a norm over all float32 gradients: some processors round products of other row counts differently
            rel = 5e-6 if key == "grad_norm" else 1e-6
            assert line[key] == pytest.approx(other[key], rel=rel), key
        assert line["num_tokens"] == other["num_tokens"]


def same_run(found: Ended, wanted: Ended, bound: float = 1e-6) -> None:
    """Every logged line, the evaluation and the weights."""
    same_steps(found, wanted)
    after, expected = found.told()["after"], wanted.told()["after"]
    for key in ("eval_loss", "eval_mean_token_accuracy", "eval_entropy"):
        assert after[key] == pytest.approx(expected[key], rel=1e-6), key
    same_weights(found, wanted, bound)


def settings(train: dict[str, Any]) -> dict[str, Any]:
    return {"eval_rows": UNEVEN, "train": {"per_device_eval_batch_size": 2, **train}}


@pytest.fixture(scope="module")
def alone(ranks: Ranks) -> Ended:
    return ranks("alone", world=1, **settings(ALONE))


@pytest.fixture(scope="module")
def lora_alone(ranks: Ranks) -> Ended:
    return ranks("lora-alone", world=1, lora=True, **settings(ALONE))


@pytest.fixture(scope="module")
def in_parts(ranks: Ranks) -> Ended:
    """FSDP2 with a checkpoint in parts after each step."""
    return ranks("in-parts", **settings({**IN_PARTS, **SAVES}))


def test_fsdp2(in_parts: Ended, alone: Ended) -> None:
    assert in_parts.told()["wrapper"].startswith("FSDP")
    same_run(in_parts, alone)


def test_the_model_that_fsdp2_saves_loads_anywhere(in_parts: Ended, alone: Ended) -> None:
    models = [AutoModelForCausalLM.from_pretrained(run.out / "model").eval() for run in (in_parts, alone)]
    ids = torch.arange(3, 23)[None]
    found, wanted = (model(ids).logits for model in models)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("world", [2, 1])
def test_a_checkpoint_in_parts_is_gone_on_from(world: int, in_parts: Ended, ranks: Ranks) -> None:
    first = in_parts.out / "checkpoint-1"
    assert check(first) == [] and (first / "pytorch_model_fsdp_0").is_dir() and (first / "optimizer_0").is_dir()
    train = {**IN_PARTS, "gradient_accumulation_steps": 4 // world}
    resumed = ranks(f"resumed-{world}", world=world, resume=str(first), train=train)
    assert resumed.steps()[-1]["loss"] == pytest.approx(in_parts.steps()[-1]["loss"], rel=1e-6)
    assert resumed.steps()[-1]["num_tokens"] == in_parts.steps()[-1]["num_tokens"]
    same_weights(resumed, in_parts)
    assert "optimizer begins anew" not in resumed.err(0)
    assert ("ranks is 2 there, 1 here" in resumed.err(0)) == (world == 1)


@pytest.mark.parametrize("engine", [{}, FSDP], ids=["ddp", "fsdp2"])
def test_lora(engine: dict[str, Any], lora_alone: Ended, ranks: Ranks) -> None:
    same_run(ranks(f"lora-{len(engine)}", lora=True, **settings(engine)), lora_alone)


CHOSEN = {"trainable": ["layers.1.", "!q_proj"]}


@pytest.mark.parametrize("engine", [{}, IN_PARTS], ids=["ddp", "fsdp2"])
def test_some_of_the_weights(engine: dict[str, Any], ranks: Ranks) -> None:
    """The others keep their bits; a run that goes on from the middle ends the same."""
    wanted = ranks(f"chosen-alone-{len(engine)}", world=1, **settings({**ALONE, **CHOSEN}))
    found = ranks(f"chosen-{len(engine)}", **settings({**engine, **SAVES, **CHOSEN}))
    same_run(found, wanted)
    fresh, trained = make_model().state_dict(), found.weights()
    moved = {name for name, weight in trained.items() if not torch.equal(weight, fresh[name])}
    assert moved == {name for name in trained if "layers.1." in name and "q_proj" not in name}
    first = str(found.out / "checkpoint-1")
    same_weights(ranks(f"chosen-on-{len(engine)}", resume=first, train={**engine, **CHOSEN}), found)


def test_each_batch_has_its_own_loss_for_metrics(ranks: Ranks) -> None:
    """Whatever the other ranks' batches hold; the rows that fill up the last batches have none."""
    evaluated = {"losses": True, "evaluates_first": True, **settings({"include_for_metrics": ["loss"], "max_steps": 1})}
    two, one = ranks("losses", **evaluated), ranks("losses-alone", world=1, **evaluated)
    assert two.told()["before"]["eval_losses"] == pytest.approx(one.told()["before"]["eval_losses"], rel=1e-6)


def test_an_evaluation_before_training_changes_nothing(alone: Ended, ranks: Ranks) -> None:
    """accelerate takes a model that was evaluated for prepared, and would not put it into DistributedDataParallel."""
    same_run(ranks("first", evaluates_first=True, **settings({})), alone)
    refused = ranks("first-fsdp2", evaluates_first=True, **settings(FSDP))
    assert refused.statuses == [2, 2] and "set eval_on_start=True" in refused.err(0)
    started = ranks("start-fsdp2", **settings({**FSDP, "eval_on_start": True}))
    same_weights(started, alone)
    assert started.told()["log"][0]["eval_loss"] > 0


def test_muon_under_ddp(ranks: Ranks) -> None:
    """Weights to 1e-5: five rounds of products in bfloat16 orthogonalise what two ranks summed in another order."""
    muon = {"optim": "muon"}
    same_weights(ranks("muon", **settings(muon)), ranks("muon-alone", world=1, **settings({**ALONE, **muon})), 1e-5)


@pytest.mark.parametrize("engine", [FSDP, IN_PARTS], ids=["whole", "in-parts"])
def test_an_adapter_that_fsdp2_trained_is_merged(engine: dict[str, Any], ranks: Ranks, tmp_path: Path) -> None:
    """The export loads in plain transformers, with the logits that the sharded model gave when its training ended."""
    base, out = tmp_path / "base", tmp_path / "merged"
    make_model().save_pretrained(base)
    kind = engine["fsdp_config"]["state_dict_type"]
    trained = ranks(f"merged-{kind}", base=str(base), lora=True, train={**engine, "learning_rate": 0.1})
    assert export(trained.out / "model", out, probes=[Probe(ids=range(3, 23), n_prompt=10)]).passes
    untrained, found = (torch.tensor(logits_of(AutoModelForCausalLM.from_pretrained(folder))) for folder in (base, out))
    wanted = torch.tensor(trained.told()["logits"])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert float((wanted - untrained).abs().max()) > 0.1


def test_tensor_parallel(ranks: Ranks, tmp_path: Path) -> None:
    """Two ranks share each row and each matrix: the steps and weights of one process, and each token counts once."""
    make_model(num_key_value_heads=2).save_pretrained(tmp_path)
    plan = {"model_init_kwargs": {"tp_plan": "auto"}}
    found = ranks("tp", base=str(tmp_path), rows=4, train=plan)
    wanted = ranks("tp-alone", base=str(tmp_path), world=1, rows=4)
    same_steps(found, wanted)
    same_weights(found, wanted)
    refused = ranks(
        "tp-tokens", base=str(tmp_path), train={**plan, "tokens_per_step": 50, "gradient_accumulation_steps": 1}
    )
    assert refused.statuses == [2, 2] and "tensor-parallel" in refused.err(0)


@pytest.mark.parametrize(("rows", "engine"), [(5, {}), (9, FSDP), (14, {})], ids=["ddp", "fsdp2", "full-micro-batches"])
def test_rows_that_do_not_fill_the_last_step(rows: int, engine: dict[str, Any], ranks: Ranks) -> None:
    """No row counts twice: over two epochs, steps of up to eight rows are those of one process, the short last too.

    Five rows: in the second micro-batch one rank has one row, the other nothing. Nine: so it is in a step of one
    micro-batch. Fourteen: all micro-batches are full, and one rank has one more.
    """
    train = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    found = ranks(f"uneven-{rows}", rows=rows, train={**train, **engine})
    wanted = ranks(f"uneven-{rows}-alone", rows=rows, world=1, train={**train, **ALONE})
    assert len(wanted.steps()) == 2 * math.ceil(rows / 8)
    same_steps(found, wanted)
    same_weights(found, wanted)
    of_ranks = [line for rank in (0, 1) for line in found.told(rank)["worst_steps"]]
    for step in wanted.told()["worst_steps"]:
        shown = [row["row"] for line in of_ranks if line["step"] == step["step"] for row in line["rows"]]
        assert sorted(shown) == sorted(row["row"] for row in step["rows"])


def test_rows_grouped_by_length(ranks: Ranks) -> None:
    """The steps of one process; a run that goes on in the second epoch has that epoch's order."""
    train = {"num_train_epochs": 2, "train_sampling_strategy": "group_by_length"}
    found = ranks("grouped", rows=14, train={**train, "save_strategy": "steps", "save_steps": 5})
    wanted = ranks("grouped-alone", rows=14, world=1, train={**train, **ALONE})
    same_steps(found, wanted)
    same_weights(found, wanted)
    resumed = ranks("grouped-on", rows=14, train=train, resume=str(found.out / "checkpoint-5"))
    same_weights(resumed, found)


@long
@pytest.mark.parametrize("engine", [{}, FSDP, IN_PARTS], ids=["ddp", "fsdp2", "in-parts"])
def test_tied_embeddings(engine: dict[str, Any], ranks: Ranks) -> None:
    tied = {"model": {"tie_word_embeddings": True}}
    whole = ranks("tied-alone", world=1, **settings(ALONE), **tied)
    kind = engine.get("fsdp_config", {}).get("state_dict_type", "ddp")
    same_run(ranks(f"tied-{kind}", **settings(engine), **tied), whole)


def test_only_the_first_rank_speaks(in_parts: Ended) -> None:
    assert "max_length is 512" in in_parts.err(0)
    assert in_parts.err(1) == (in_parts.out / "out-1.txt").read_text() == ""
