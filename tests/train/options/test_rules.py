"""Every rule of the table: it applies where it should, and not elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import ParallelismConfig
from transformers.training_args import OptimizerNames

from honed.errors import RecipeError
from honed.train.options import rules, surroundings
from honed.train.options.config import SFTConfig
from honed.train.options.optim import Own
from honed.train.options.rule import Rule, order_is_fixed


def several_gpus(args: SFTConfig) -> None:
    args._n_gpu = 4


def deepspeed_tokens(args: SFTConfig) -> None:
    args.tokens_per_step, args.deepspeed = 256, "ds.json"  # given at once it would have to be installed


def deepspeed_rates(args: SFTConfig) -> None:
    args.learning_rates, args.deepspeed = {"lora_B": 16}, "ds.json"


IN_BACKWARD = {"optimizer_in_backward": True, "max_grad_norm": 0.0}


def deepspeed_in_backward(args: SFTConfig) -> None:
    args.optimizer_in_backward, args.max_grad_norm, args.deepspeed = True, 0.0, "ds.json"


def rows_split(args: SFTConfig) -> None:
    args.parallelism_config = ParallelismConfig(cp_size=2)


def sharded(args: SFTConfig) -> None:
    args.fsdp = True


def sharded_muon(args: SFTConfig) -> None:
    args.optim, args.fsdp = Own.MUON, True


def deepspeed_muon(args: SFTConfig) -> None:
    args.optim, args.deepspeed = Own.MUON, "ds.json"


def sharded_sgd(args: SFTConfig) -> None:
    args.optim, args.fsdp = OptimizerNames.SGD, True


def sharded_and_compiled(args: SFTConfig) -> None:
    args.fsdp, args.torch_compile = True, True


def sharded_and_rounded(args: SFTConfig) -> None:
    args.fsdp, args.optim_args = True, "bf16_stochastic_round=True"


class OfTwoProcesses(SFTConfig):
    """Arguments as one of two processes sees them."""

    @property
    def world_size(self) -> int:
        return 2


def odd_batches(args: SFTConfig) -> None:
    args.__class__, args.per_device_train_batch_size = OfTwoProcesses, 3
    args.accelerator_config.split_batches = True


def accumulation_in_a_static_graph(args: SFTConfig) -> None:
    args.__class__, args.ddp_static_graph, args.gradient_accumulation_steps = OfTwoProcesses, True, 2


def objects_of_two(args: SFTConfig) -> None:
    args.__class__, args.eval_use_gather_object = OfTwoProcesses, True


CUDA_GRAPHS = {"torch_compile_mode": "reduce-overhead"}
CASES: dict[str, dict[str, Any] | Callable[[SFTConfig], None]] = {
    "data_parallel": several_gpus,
    "context_parallel": rows_split,
    "sequence_parallel_ranks": {"sequence_parallel_size": 2},
    "sequence_parallel_alone": {"sequence_parallel_size": 2, "neftune_noise_alpha": 5.0},
    "dispatched_batches": {"accelerator_config": {"dispatch_batches": True}},
    "split_batches": odd_batches,
    "static_graph": accumulation_in_a_static_graph,
    "gathered_objects": objects_of_two,
    "rebalanced_batches": {"train_sampling_strategy": "batch_rebalance"},
    "mean_of_ranks": {"average_tokens_across_devices": False},
    "packing_without_length": {"packing": True, "max_length": None},
    "liger_absent": {"use_liger_kernel": True},
    "liger_without_gpu": {"use_liger_kernel": True},
    "liger_loss": {"liger_kernel_config": {"fused_linear_cross_entropy": True}},
    "truncation_mode": {"truncation_mode": "keep_end"},
    "selective_checkpointing": {"gradient_checkpointing_kwargs": {"selective": True}},
    "tokens_and_accumulation": {"tokens_per_step": 256, "gradient_accumulation_steps": 2},
    "tokens_of_a_stream": {"tokens_per_step": 256, "streaming": True},
    "tokens_with_deepspeed": deepspeed_tokens,
    "learning_rates_values": {"learning_rates": {"lora_B": 0}},
    "learning_rates_with_deepspeed": deepspeed_rates,
    "image_max_pixels": {"image_max_pixels": 0},
    "in_backward_clipping": {"optimizer_in_backward": True},
    "in_backward_accumulation": {**IN_BACKWARD, "gradient_accumulation_steps": 2},
    "in_backward_alone": deepspeed_in_backward,
    "in_backward_adamw": {**IN_BACKWARD, "optim": "adafactor"},
    "in_backward_reentrant": {**IN_BACKWARD, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "muon_sharded": sharded_muon,
    "muon_deepspeed": deepspeed_muon,
    "plain_sgd_of_shards": sharded_sgd,
    "rounding_of_shards": sharded_and_rounded,
    "compile_of_shards": sharded_and_compiled,
    "compile_without_compiler": {"torch_compile": True},
    "cuda_graphs_and_checkpointing": {**CUDA_GRAPHS, "gradient_checkpointing": True},
    "fp8_value": {"fp8": "yes"},
    "fp8_absent": {"fp8": True},
    "fp8_hardware": {"fp8": True},
    "fp8_of_shards": {"fp8": "emulate", "fp16": True},
    "fp8_not_compiled": {"fp8": True},
    "lengths_of_cuda_graphs": {**CUDA_GRAPHS, "gradient_checkpointing": False},
    "fsdp_on_cpu": sharded,
    "liger_config": {"liger_kernel_config": {"rope": False}},
    "checkpointing_kwargs": {
        "gradient_checkpointing": False,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "checkpointing_every_n": {
        "gradient_checkpointing": "selective",
        "gradient_checkpointing_kwargs": {"every_n_layers": 2},
    },
    "early_stopping_values": {"early_stopping_patience": 0},
    "early_stopping_without_evaluations": {"early_stopping_patience": 2},
    "early_stopping_without_the_best": {"early_stopping_patience": 2, "eval_strategy": "epoch"},
    "jit_checkpoint": {"enable_jit_checkpoint": True},
    "order_of_rows": {"dataloader_num_workers": 2, "dataloader_in_order": False},
    "optim_target_modules": {"optim": "adamw_torch", "optim_target_modules": ["q_proj"]},
    "schedule_without_options": {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 1}},
    "include_for_metrics": {"include_for_metrics": ["inputs", "losses"]},
    "threshold_without_patience": {"early_stopping_threshold": 0.1},
    "budget_without_auto": {"memory_budget": 8.0},
    "budget_not_positive": {"memory_budget": 0.0, "gradient_checkpointing": "auto"},
    "offloading_on_cpu": {"activation_offloading": True},
    "dataset_num_proc": {"dataset_num_proc": 4, "streaming": True},
    "dataset_kwargs": {"dataset_kwargs": {"add_special_tokens": False}},
    "packing_unprepared": {"packing": True, "dataset_kwargs": {"skip_prepare_dataset": True}},
    "strategy_without_packing": {"packing_strategy": "wrapped"},
    "completion_and_train_on": {"completion_only_loss": True, "train_on": "all"},
    "shuffled_stream": {"shuffle_dataset": True, "streaming": True},
    "length_grouping": {"train_sampling_strategy": "group_by_length"},
    "evaluation_casts_the_model": {"bf16_full_eval": True},
    "bf16_on_cpu": {"bf16": True},
    "bf16_emulated": {},
}


def arguments(tmp_path: Path, case: dict[str, Any] | Callable[[SFTConfig], None]) -> SFTConfig:
    changes = case if isinstance(case, dict) else {}
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, **changes)
    args.n_gpu  # noqa: B018 - reading it sets the devices up, which would undo the next line
    if not isinstance(case, dict):
        case(args)
    return args


def test_every_rule_has_a_case() -> None:
    assert {rule.name for rule in rules.RULES} == set(CASES)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_the_rule_applies(rule: Rule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "cpu_likes_bf16", lambda: False)
    monkeypatch.setattr(rules, "is_missing", lambda package: rule.name in ("liger_absent", "fp8_absent"))
    monkeypatch.setattr(rules, "has_compiler", lambda device: rule.name != "compile_without_compiler")
    monkeypatch.setattr(rules, "multiplies_float8", lambda args: rule.name != "fp8_hardware")
    monkeypatch.setattr(rules, "lacks_bfloat16", lambda args: rule.name == "bf16_emulated")
    args = arguments(tmp_path, CASES[rule.name])
    assert rule.when(args)
    if rule.refuses:
        with pytest.raises(RecipeError) as caught:
            rules.check(args)
        assert rule.message in str(caught.value) and rule.fix in str(caught.value)
    else:
        assert any(rule.message in note for note in rules.check(args))


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_the_rule_leaves_plain_arguments_alone(rule: Rule, tmp_path: Path) -> None:
    assert not rule.when(arguments(tmp_path, {}))


@pytest.mark.parametrize(("kind", "parts"), [("CP", 2), ("SP", 2), ("TP", 1)])
def test_rows_may_be_split_by_accelerate_launch_as_well(
    kind: str, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{kind}_SIZE", "2")
    assert surroundings.row_parts(arguments(tmp_path, {})) == parts


@pytest.mark.parametrize(
    "changes",
    [
        {"fp8": "emulate"},
        {"torch_compile": True},
        {"average_tokens_across_devices": False},
        {"dataset_kwargs": {"skip_prepare_dataset": True}},
    ],
)
def test_shared_rows_exclude(changes: dict[str, Any], tmp_path: Path) -> None:
    assert surroundings.hinders_sequences(arguments(tmp_path, changes))


@pytest.mark.parametrize(("name", "refused"), [("muon", True), ("adamw_torch", False)])
def test_muon_sees_what_accelerate_launch_shards(
    name: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    rule = next(rule for rule in rules.RULES if rule.name == "muon_sharded")
    assert rule.when(arguments(tmp_path, {"optim": name})) is refused


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("split_batches", {"per_device_train_batch_size": 4}),
        ("static_graph", {"gradient_accumulation_steps": 1}),
        ("gathered_objects", {"eval_use_gather_object": False}),
    ],
)
def test_what_two_processes_may_do(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    args = arguments(tmp_path, CASES[name])
    for option, value in change.items():
        setattr(args, option, value)
    assert rules.check(args) == []


def test_muon_does_not_step_in_the_backward_pass(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="supports only AdamW"):
        rules.check(arguments(tmp_path, {**IN_BACKWARD, "optim": "muon"}))


@pytest.mark.parametrize(("name", "rule"), [("FSDP", "muon_sharded"), ("DEEPSPEED", "muon_deepspeed")])
def test_who_shards_may_be_said_by_the_launcher(
    name: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path, {"optim": "muon"})
    [wanted] = [one for one in rules.RULES if one.name == rule]
    assert not wanted.when(args) and not surroundings.is_sharded(args)
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")  # as `accelerate launch` does
    assert wanted.when(args) and surroundings.is_sharded(args)


@pytest.mark.parametrize(
    ("changes", "fixed"),
    [
        ({}, False),
        ({"tokens_per_step": 64}, True),
        ({"train_sampling_strategy": "sequential"}, True),
        ({"accelerator_config": {}, "dataloader_num_workers": 2}, True),
    ],
)
def test_what_fixes_the_order_of_rows(changes: dict[str, Any], fixed: bool, tmp_path: Path) -> None:
    args = arguments(tmp_path, {"accelerator_config": {"use_seedable_sampler": False}, **changes})
    assert order_is_fixed(args) is fixed
