"""What a run starts from: model, tokenizer, arguments and attention, as the caller asked for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.errors import DataError, ModelError, RecipeError, RunError
from honed.model.adapters.adapters import attach, lora_config
from honed.model.load.packed_experts import pack
from honed.train.forward.seams import Seams
from honed.train.options.config import SFTConfig
from honed.train.trainer import start
from honed.train.trainer.trainer import SFTTrainer

Rows = list[dict[str, Any]]
Folder = Callable[..., str]


@pytest.mark.parametrize("kind", ["name", "path", "model", "adapter"])
def test_every_kind_of_model_trains(
    kind: str, folder: Folder, tiny_model: Callable[..., Any], quick: dict[str, Any], chat_rows: Rows
) -> None:
    from peft import get_peft_model

    name = folder()
    loaded = tiny_model()
    loaded.config.name_or_path = name
    model = {"name": name, "path": Path(name), "model": loaded}.get(kind)
    model = get_peft_model(loaded, lora_config(r=2)) if model is None else model
    trainer = SFTTrainer(model, args=SFTConfig(**quick, max_steps=1), train_dataset=chat_rows)
    output = trainer.train()
    assert output.global_step == 1 and output.training_loss > 0 and output.metrics["train_loss"] > 0
    assert {"loss", "mean_token_accuracy", "entropy", "num_tokens", "learning_rate", "grad_norm"} <= set(
        trainer.state.log_history[0]
    )


def test_without_arguments_there_are_trls(folder: Folder, chat_rows: Rows, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = SFTTrainer(folder("qwen3"), train_dataset=chat_rows)
    assert trainer.args.output_dir == "qwen3-SFT" and trainer.args.learning_rate == 2e-5


def test_plain_arguments_keep_their_values(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, hub_token="secret", learning_rate=1.0)
    own = start.own_arguments(args, None)
    assert (own.hub_token, own.learning_rate, own.max_length) == ("secret", 1.0, 1024)
    assert own.gradient_checkpointing is False and own is not args


def test_keywords_reach_from_pretrained(folder: Folder, quick: dict[str, Any]) -> None:
    options = {"torch_dtype": "bfloat16", "attn_implementation": "eager", "low_cpu_mem_usage": True}
    before = copy.deepcopy(options)
    model, notes = start.make_model(folder(), SFTConfig(**quick, model_init_kwargs=options))
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    assert options == before and notes == ["torch_dtype is called dtype now (in model_init_kwargs)."]
    auto, _ = start.make_model(folder(dtype=torch.float16), SFTConfig(**quick, model_init_kwargs={"dtype": "auto"}))
    assert auto.dtype == torch.float16


def test_trust_and_quantisation_reach_the_loader(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(start, "load_model", lambda name, **options: seen.update(options, name=name))
    monkeypatch.setattr(start, "load_tokenizer", lambda name, **options: seen.update(tokenizer=options) or FakeTokens())
    args = SFTConfig(**quick, trust_remote_code=True, model_init_kwargs={"revision": "v2"})
    start.make_model("owner/name", args, "bits")
    start.make_tokenizer(None, "owner/name", args)
    assert seen["trust_remote_code"] is True and seen["quantization_config"] == "bits" and seen["revision"] == "v2"
    assert seen["tokenizer"] == {"trust_remote_code": True, "revision": "v2"}
    with pytest.raises(ModelError, match="quantised twice"):
        start.make_model("x", SFTConfig(**quick, model_init_kwargs={"quantization_config": 1}), 2)


class FakeTokens:
    pad_token_id = 0


def test_each_rank_loads_onto_its_own_device(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(start, "load_model", lambda name, **options: seen.update(options))
    monkeypatch.setattr(SFTConfig, "world_size", 2)
    _, notes = start.make_model("x", SFTConfig(**quick, model_init_kwargs={"device_map": "auto"}))
    assert seen["device_map"] == {"": 0} and "each rank has its own" in notes[0]


def test_keywords_for_a_loaded_model_are_told_of(tiny_model: Callable[..., Any], quick: dict[str, Any]) -> None:
    model = tiny_model()
    found, notes = start.make_model(model, SFTConfig(**quick, model_init_kwargs={"dtype": "auto"}))
    assert found is model
    assert "no effect on a model that is loaded already" in notes[0]


def test_tokens_are_set_on_a_copy(tiny_tokenizer: Any, quick: dict[str, Any]) -> None:
    before = (tiny_tokenizer.eos_token, tiny_tokenizer.pad_token)
    args = SFTConfig(**quick, eos_token="<|endoftext|>", pad_token="<|im_start|>")
    tokenizer = start.make_tokenizer(tiny_tokenizer, "", args)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|im_start|>")
    assert (tiny_tokenizer.eos_token, tiny_tokenizer.pad_token) == before
    assert start.make_tokenizer(tiny_tokenizer, "", SFTConfig(**quick)) is tiny_tokenizer
    with pytest.raises(RecipeError, match=r"eos_token is '<\|none\|>'"):
        start.make_tokenizer(tiny_tokenizer, "", SFTConfig(**quick, eos_token="<|none|>"))


def test_the_eos_token_ends_texts_and_stops_generation(
    make: Callable[..., Any], tiny_model: Callable[..., Any]
) -> None:
    trainer = make([{"text": "yes one"}] * 2, eos_token="<|endoftext|>", train_on=None, model=tiny_model())
    assert trainer.train_dataset[0].input_ids[-1] == 0
    trainer.train()
    stops = trainer.model.generation_config.eos_token_id
    assert 0 in ([stops] if isinstance(stops, int) else stops) and trainer.model.config.eos_token_id == 0


def save(tokenizer: Any, model: Any, place: Path) -> None:
    tokenizer.save_pretrained(place)
    model.config.save_pretrained(place)


def test_the_template_of_a_file_or_of_another_model(
    tiny_tokenizer: Any, tiny_model: Callable[..., Any], quick: dict[str, Any], tmp_path: Path, make: Any
) -> None:
    template = tiny_tokenizer.chat_template.replace("'\\n'", "' two\\n'").replace("assistant\\n", "assistant two\\n")
    file, other = tmp_path / "own.jinja", copy.copy(tiny_tokenizer)
    file.write_text(template)
    other.chat_template = template
    save(other, tiny_model(), tmp_path / "other")
    for path in (file, tmp_path / "other"):
        changed = start.make_tokenizer(tiny_tokenizer, "", SFTConfig(**quick, chat_template_path=str(path)))
        assert changed.chat_template == template != tiny_tokenizer.chat_template
    rows = [{"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}]}]
    trainer = make(rows, chat_template_path=str(tmp_path / "other"))
    assert "assistant two\nyes" in tiny_tokenizer.decode(trainer.train_dataset[0].input_ids)
    assert trainer.processing_class.chat_template == template
    other.chat_template = None
    save(other, tiny_model(), tmp_path / "bare")
    with pytest.raises(RecipeError, match="has no chat template"):
        start.make_tokenizer(tiny_tokenizer, "", SFTConfig(**quick, chat_template_path=str(tmp_path / "bare")))


def test_a_template_with_unknown_tokens_is_refused(
    tiny_tokenizer: Any, tiny_model: Callable[..., Any], quick: dict[str, Any], tmp_path: Path
) -> None:
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["<|tool|>"], special_tokens=True)
    other.chat_template = "<|tool|>" + tiny_tokenizer.chat_template
    save(other, tiny_model(), tmp_path / "other")
    with pytest.raises(
        RecipeError, match=r"needs <\|tool\|>, which this tokenizer does not have[^~]*clone_chat_template"
    ):
        start.make_tokenizer(tiny_tokenizer, "", SFTConfig(**quick, chat_template_path=str(tmp_path / "other")))


@pytest.mark.parametrize(("given", "expected"), [(1024, 512), (700, 700), (None, None)])
def test_the_default_length_is_the_tokenizers_limit_at_most(
    given: int | None, expected: int | None, tiny_tokenizer: Any, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    args = SFTConfig(output_dir=str(tmp_path), max_length=given)
    notes = start.fit_to_model(args, tiny_model(), tiny_tokenizer)
    assert args.max_length == expected and len(notes) == (given == 1024)


def test_checkpointing_is_left_out_where_a_model_cannot(
    make: Callable[..., Any], tiny_model: Callable[..., Any], chat_rows: Rows
) -> None:
    model = tiny_model()
    type(model).supports_gradient_checkpointing, before = False, True
    try:
        trainer = make(chat_rows, model=model, max_steps=1)
        trainer.train()
    finally:
        type(model).supports_gradient_checkpointing = before
    assert not trainer.args.gradient_checkpointing
    assert any("gradient_checkpointing has no effect" in note for note in trainer.notes)


@pytest.mark.parametrize(("named", "kind"), [("keyword", "eager"), ("keyword", "sdpa"), ("model", "eager")])
@pytest.mark.parametrize("packing", [False, True])
def test_attention_that_somebody_named_is_kept(  # noqa: PLR0917
    named: str,
    kind: str,
    packing: bool,
    folder: Folder,
    quick: dict[str, Any],
    chat_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for packing, which needs honed's; then it says so. The model has its own back afterwards."""
    from transformers import AutoModelForCausalLM

    used: list[str] = []
    plain = SFTTrainer.training_step

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.append(self.model.config._attn_implementation)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", watched)
    keywords = {"attn_implementation": kind}
    by_keyword = named == "keyword"
    model = folder() if by_keyword else AutoModelForCausalLM.from_pretrained(folder(), **keywords)
    args = SFTConfig(**quick, packing=packing, max_steps=1, model_init_kwargs=keywords if by_keyword else None)
    trainer = SFTTrainer(model, args=args, train_dataset=chat_rows)
    trainer.train()
    assert used == ["honed" if packing else kind] and trainer.model.config._attn_implementation == kind
    assert isinstance(trainer.data_collator, FlatCollator if packing else PaddedCollator)
    assert any(f"attn_implementation={kind!r}" in note for note in trainer.notes)


@pytest.mark.parametrize("kind", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
def test_flash_attention_takes_flat_rows_itself(
    kind: str, tiny_model: Callable[..., Any], quick: dict[str, Any]
) -> None:
    """FlashAttention runs on GPUs only: what is looked at is the choice."""
    found = Seams(flat=True, scoring=True)
    args = SFTConfig(**quick, model_init_kwargs={"attn_implementation": kind}, packing=True)
    chosen, flat = start.choose_attention(found, "name", tiny_model(), args)
    assert flat and not chosen.flat and chosen.scoring and found.flat
    assert start.choose_attention(found, "name", tiny_model(), SFTConfig(**quick)) == (found, True)


def test_packing_is_refused_where_no_attention_keeps_documents_apart(
    tiny_model: Callable[..., Any], quick: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="packing=True"):
        start.choose_attention(Seams(notes=["why"]), "name", tiny_model(), SFTConfig(**quick, packing=True))


def test_generation_after_training_keeps_its_cache(
    make: Callable[..., Any], tiny_model: Callable[..., Any], chat_rows: Rows
) -> None:
    """transformers drops the cache of a model left in training mode with checkpointing, and answers nonsense."""
    model = tiny_model(initializer_range=0.1)
    make(chat_rows, model=model, gradient_checkpointing=True, max_steps=1).train()
    prompt = torch.tensor([[1, 5, 6, 7]])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.train().generate(prompt, use_cache=True, **options)
    assert torch.equal(cached, model.eval().generate(prompt, use_cache=False, **options))
    assert model.config.use_cache


@pytest.mark.parametrize(
    ("rope", "max_length", "told"),
    [("dynamic", 128, True), ("dynamic", None, True), ("dynamic", 32, False), ("linear", 128, False)],
)
def test_rotations_that_depend_on_the_longest_row_are_told(
    rope: str, max_length: int | None, told: bool, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    kind = {"rope_type": rope, "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_model(max_position_embeddings=32, rope_parameters=kind)
    rows = torch.arange(3, 3 + (max_length or 128)).expand(2, -1)
    mask = torch.ones_like(rows)
    mask[0, 8:] = 0
    with torch.no_grad():
        alone = model(input_ids=rows[:1, :8]).logits
        beside = model(input_ids=rows, attention_mask=mask).logits
    assert torch.allclose(alone, beside[:1, :8], atol=1e-4) != told
    notes = start.fit_to_model(SFTConfig(use_cpu=True, report_to="none", max_length=max_length), model, tiny_tokenizer)
    assert any("longer than 32 tokens" in note for note in notes) == told


def args_with(tmp_path: Path, **given: Any) -> SFTConfig:
    return SFTConfig(output_dir=str(tmp_path), use_cpu=True, **given)


def test_ddp_looks_for_unused_weights_where_a_pass_may_leave_some(
    tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    """Of a whole model transformers decides; what the script says stays."""
    adapter, seeing = (attach(tiny_model(), lora_config(r=2)) for _ in range(2))
    seeing.config.vision_config = {}
    for model, checkpoints, given, wanted in [
        (adapter, True, None, False),
        (adapter, False, None, None),
        (seeing, True, None, None),
        (adapter, True, True, True),
        (tiny_model(), True, None, None),
    ]:
        args = args_with(tmp_path, ddp_find_unused_parameters=given, gradient_checkpointing=checkpoints)
        start.fit_ranks(args, model)
        assert args.ddp_find_unused_parameters is wanted


def test_packed_experts_are_neither_sharded_nor_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 would unpack them, and go on with numbers of full size."""
    pytest.importorskip("bitsandbytes")
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(pack(torch.randn(2, 8, 64), kind="nf4", twice=False), requires_grad=False)
    with pytest.raises(ModelError, match="torch_compile"):
        start.fit_ranks(args_with(tmp_path, torch_compile=True), model)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ModelError, match="FSDP and DeepSpeed would unpack experts"):
        start.fit_ranks(args_with(tmp_path), model)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft's
def test_a_tied_head_that_is_kept_needs_weights_on_all_ranks(
    tiny_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied, apart = (
        attach(tiny_model(tie_word_embeddings=ties), lora_config(r=2, modules_to_save=["lm_head"]))
        for ties in (True, False)
    )
    start.fit_ranks(args_with(tmp_path), tied)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    start.fit_ranks(args_with(tmp_path), apart)
    with pytest.raises(RecipeError, match="modules_to_save"):
        start.fit_ranks(args_with(tmp_path), tied)


def test_a_balance_without_gradient_is_refused(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    """A reentrant forward pass records nothing, and the router's logits are taken from it."""
    experts, dense = tiny_model("mixtral", num_local_experts=2, router_aux_loss_coef=0.1), tiny_model()
    tokenizer = SimpleNamespace(model_max_length=512)
    for model, given, refused in [
        (experts, {"use_reentrant": True}, True),
        (experts, {"use_reentrant": False}, False),
        (dense, {"use_reentrant": True}, False),
    ]:
        args = args_with(tmp_path, gradient_checkpointing_kwargs=given)
        with pytest.raises(RecipeError, match="Reentrant") if refused else nullcontext():
            start.fit_to_model(args, model, tokenizer)
    args.gradient_checkpointing = False
    start.fit_to_model(args, experts, tokenizer)


def test_bad_rows_are_told_before_a_model_is_loaded(
    folder: Folder, quick: dict[str, Any], chat_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model by its name; rows that can be read once, or go through the caller's function, are not touched."""
    loads: list[str] = []
    real = start.load_model
    monkeypatch.setattr(start, "load_model", lambda name, **options: loads.append(name) or real(name, **options))
    bad = [*chat_rows, {"prompt": "why fox", "completion": ""}]
    for data in ({"train_dataset": bad}, {"train_dataset": chat_rows, "eval_dataset": bad}):
        with pytest.raises(DataError, match=f"1 of {len(bad)} rows cannot be trained on"):
            SFTTrainer(folder(), args=SFTConfig(**quick), **data)
    assert not loads
    read: list[int] = []

    def once(row: Any) -> Any:
        read.append(1)
        return row

    SFTTrainer(folder(), args=SFTConfig(**quick), train_dataset=chat_rows, formatting_func=once)
    SFTTrainer(folder(), args=SFTConfig(**quick), train_dataset=iter(chat_rows))
    assert len(loads) == 2 and len(read) < 2 * len(chat_rows)


def test_a_model_that_is_replaced_later(make: Callable[..., SFTTrainer], tiny_model: Any, chat_rows: Rows) -> None:
    trainer = make(chat_rows, max_steps=1)
    trainer.train()
    trained, trainer.model = trainer.model, tiny_model()
    with pytest.raises(RunError, match=r"trainer\.model was replaced[\s\S]*fix: make a new SFTTrainer"):
        trainer.train()
    trainer.model = trained
    trainer.train()
