"""Every kind of adapter through SFTTrainer: it learns, only it changes, and its saved form answers the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from honed.errors import ModelError
from honed.model.adapters.adapters import attach, load_with_adapter, lora_config
from honed.model.load.chat_tokens import clone_chat_template, setup_chat_format
from honed.train.forward.seams import find_seams
from honed.train.options.config import SFTConfig
from honed.train.trainer.adalora import adalora_callbacks, orthogonality_penalty
from honed.train.trainer.trainer import SFTTrainer

CPU = torch.device("cpu")
LM: dict[str, Any] = {"task_type": "CAUSAL_LM"}
ALL: dict[str, Any] = {**LM, "target_modules": "all-linear"}
QV: dict[str, Any] = {**LM, "target_modules": ["q_proj", "v_proj"]}

METHODS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(**ALL),
    "dora": lambda: lora_config(use_dora=True),
    "rslora": lambda: lora_config(use_rslora=True),
    "pissa": lambda: lora_config(init="pissa"),
    "olora": lambda: lora_config(init="olora"),
    "gaussian": lambda: lora_config(init="gaussian"),
    "modules to save": lambda: lora_config(modules_to_save=["lm_head", "embed_tokens"]),
    "adalora": lambda: peft.AdaLoraConfig(total_step=8, tinit=1, tfinal=2, deltaT=1, init_r=4, target_r=2, **ALL),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, use_cayley_neumann=False, **ALL),
    "ia3": lambda: peft.IA3Config(**LM),
    "vera": lambda: peft.VeraConfig(**LM, target_modules=["q_proj", "o_proj"]),
    "loha": lambda: peft.LoHaConfig(**QV),
    "lokr": lambda: peft.LoKrConfig(**QV),
    "trainable tokens": lambda: peft.TrainableTokensConfig(token_indices=[1, 2, 5], **LM),
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=5, **LM),
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, **LM),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16, **LM),
}
CHECKPOINTING = next(
    f.name for f in fields(SFTConfig) if f.name in ("activation_checkpointing", "gradient_checkpointing")
)
PROMPTS = ("prompt tuning", "prefix tuning", "p-tuning")


@pytest.fixture
def base(tiny_model: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A model that an adapter can be loaded onto again: it lies in a folder."""

    def load(**changes: Any) -> Any:
        folder = tmp_path / f"base{sorted(changes.items())}"
        if not folder.exists():
            tiny_model(**changes).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    return load


@pytest.fixture
def make(chat_trainer: Callable[..., SFTTrainer]) -> Callable[..., SFTTrainer]:
    return partial(
        chat_trainer, learning_rate=2e-2, max_steps=5, gradient_checkpointing=False, per_device_train_batch_size=4
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def scramble(model: Any) -> Any:
    """Trained weights moved away from where they start, where most adapters change nothing."""
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 33).view(1, -1)).logits


# AdaLoRA has taken all ranks from a layer
@pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape", "ignore:The following rank_pattern keys")
@pytest.mark.parametrize("method", METHODS)
def test_it_learns_alone_and_comes_back(
    method: str, base: Callable[..., Any], make: Callable[..., SFTTrainer], tmp_path: Path
) -> None:
    trainer = make(base(tie_word_embeddings=False), METHODS[method]())
    before, frozen = trainer.evaluate()["eval_loss"], weights(trainer.model)
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before
    for name, p in trainer.model.named_parameters():
        assert p.requires_grad or torch.equal(p, frozen[name]), name
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = load_with_adapter(str(tmp_path / "adapter"), device=CPU, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(trainer.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in PROMPTS])
def test_seams_hold_for_an_adapter_that_does_something(method: str, base: Callable[..., Any]) -> None:
    """Most adapters start as nothing; what is checked before training must be true of the trained one, too."""
    model = attach(base(tie_word_embeddings=False), METHODS[method]())
    fresh = find_seams(model)
    assert fresh == find_seams(scramble(model))
    assert fresh.flat
    assert fresh.scoring == (method != "modules to save")


@pytest.mark.parametrize("method", PROMPTS)
def test_virtual_tokens_shift_no_label(method: str, base: Callable[..., Any], make: Callable[..., SFTTrainer]) -> None:
    """The loss is that of each document alone, its logits counted from the end, where no virtual token is."""
    trainer = make(base(tie_word_embeddings=False), METHODS[method](), per_device_eval_batch_size=64)
    assert not trainer.seams.flat and any("virtual tokens" in note for note in trainer.notes)
    scramble(trainer.model)
    table, total, count = trainer.train_dataset.table, 0.0, 0
    for number in range(len(table)):
        document = table.row([number])
        ids = torch.from_numpy(document.input_ids).long()
        with torch.no_grad():
            logits_LV = trainer.model.eval()(input_ids=ids[None]).logits[0][-len(ids) :]
        nll = torch.nn.functional.cross_entropy(logits_LV[:-1], ids[1:], reduction="none")
        trained = torch.from_numpy(document.weights[1:]) > 0
        total, count = total + float(nll[trained].sum()), count + int(trained.sum())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, rel=1e-4)


def test_virtual_tokens_allow_no_packing(base: Callable[..., Any], make: Callable[..., SFTTrainer]) -> None:
    with pytest.raises(ModelError, match="virtual tokens"):
        make(base(), METHODS["prompt tuning"](), packing=True)
    with pytest.raises(ModelError, match="gradient checkpointing turns off"):
        make(base(), METHODS["prefix tuning"](), **{CHECKPOINTING: True})


@pytest.mark.parametrize(
    "config",
    [
        peft.CPTConfig(cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 1], **LM),
        peft.MultitaskPromptTuningConfig(num_virtual_tokens=5, num_tasks=2, **LM),
    ],
)
def test_methods_that_want_other_batches(config: Any, base: Callable[..., Any], make: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="honed does not provide"):
        make(base(), config)


def document_loss(model: Any, rows: Any) -> torch.Tensor:
    """Each document by itself through the plain model; sum of losses over number of trained tokens."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for number in range(len(rows.table)):
        document = rows.table.row([number])
        ids = torch.from_numpy(document.input_ids).long()
        trained = torch.from_numpy(document.weights[1:]) > 0
        nll = torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
        total, count = total + nll[trained].sum(), count + int(trained.sum())
    return total / count


def test_adalora_is_trained_as_its_paper_says(base: Callable[..., Any], make: Callable[..., SFTTrainer]) -> None:
    """Against a plain loop over the whole data: loss and penalty, optimizer step, ranks allocated."""
    plain_sgd = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.1}
    trainer = make(
        base().double(),
        METHODS["adalora"](),
        max_steps=8,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        **plain_sgd,
    )
    reference = copy.deepcopy(trainer.model).train()
    optimizer = torch.optim.SGD([p for p in reference.parameters() if p.requires_grad], lr=0.1)
    for step in range(8):
        penalties = [
            torch.linalg.norm(w @ w.T - torch.eye(4).double() if "lora_A" in n else w.T @ w - torch.eye(4).double())
            for n, w in reference.named_parameters()
            if "lora_A" in n or "lora_B" in n
        ]
        loss = document_loss(reference, trainer.train_dataset)
        (loss + 0.5 * sum(penalties) / len(penalties)).backward()
        optimizer.step()
        reference.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    trainer.train()
    expected = dict(reference.named_parameters())
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(p, expected[name], rtol=1e-7, atol=1e-9)
    kept = trainer.model.peft_config["default"].rank_pattern
    assert kept == reference.peft_config["default"].rank_pattern
    assert 0 < sum(map(sum, kept.values())) <= 2 * len(kept)  # target_r is 2, on average


def test_the_penalty_is_pefts_own(base: Callable[..., Any]) -> None:
    """peft adds it to the loss of the model's own; the difference to the loss without it is the penalty."""
    model = scramble(attach(base().double(), METHODS["adalora"]()))
    ids = torch.arange(3, 23)[None]
    added = model(input_ids=ids, labels=ids).loss - model.get_base_model()(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(0.5 * orthogonality_penalty(model), added.double(), rtol=1e-5, atol=0)


def test_adalora_takes_no_scaled_gradients(base: Callable[..., Any]) -> None:
    model = attach(base(), METHODS["adalora"]())
    with pytest.raises(ModelError, match="fp16"):
        adalora_callbacks(model, fp16=True)
    assert adalora_callbacks(base(), fp16=True) == []
    assert adalora_callbacks(attach(base(), lora_config()), fp16=True) == []


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_are_trained_and_no_other(
    tied: bool, base: Callable[..., Any], make: Callable[..., SFTTrainer], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template, bare.eos_token, bare.bos_token = None, "<|endoftext|>", "<|endoftext|>"
    source = copy.deepcopy(tiny_tokenizer)
    source.add_special_tokens({"additional_special_tokens": ["<turn>", "</turn>"]})
    source.eos_token = "</turn>"
    source.chat_template = source.chat_template.replace("<|im_start|>", "<turn>").replace("<|im_end|>", "</turn>")
    source.save_pretrained(tmp_path / "source")
    model, tokenizer, added = clone_chat_template(
        base(tie_word_embeddings=tied, vocab_size=len(bare)), bare, str(tmp_path / "source"), 8
    )
    model.save_pretrained(tmp_path / "grown")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", dtype=torch.float32)
    turns = added[:2]

    config = lora_config(r=4)
    trainer = make(model, config, tokenizer=tokenizer, weight_decay=0.0)
    assert any("2 new tokens" in note for note in trainer.notes)
    assert config.trainable_token_indices is None
    before = weights(trainer.model)
    trainer.train()
    inner = trainer.model.get_base_model()
    for module in (inner.get_input_embeddings(), inner.get_output_embeddings()):
        changed = (module.weight != module.token_adapter.base_layer.weight).any(-1).nonzero().flatten().tolist()
        assert changed == turns
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if not p.requires_grad)
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = load_with_adapter(str(tmp_path / "adapter"), device=CPU, dtype=torch.float32)
    ids = torch.tensor([[*turns, 5, 6, *turns]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, trainer.model.eval()(ids).logits)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, trainer.model(ids).logits, rtol=1e-4, atol=1e-4)


def test_rows_that_the_adapter_trains_already_are_left_to_it(
    base: Callable[..., Any], make: Callable[..., SFTTrainer], tiny_tokenizer: Any
) -> None:
    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = None
    model = base()
    with torch.no_grad():
        model.get_input_embeddings().weight[1:3] = 0  # those of <|im_start|> and <|im_end|>
    whole = make(copy.deepcopy(model), lora_config(modules_to_save=["embed_tokens", "lm_head"]))
    assert not any("new tokens" in note for note in whole.notes)
    own = lora_config()
    own.trainable_token_indices = [1, 2]
    assert not any("new tokens" in note for note in make(copy.deepcopy(model), own).notes)
    more = lora_config()
    more.trainable_token_indices = [1, 9]
    trainer = make(copy.deepcopy(model), more)
    assert any("[2]" in note for note in trainer.notes)
    assert trainer.model.peft_config["default"].trainable_token_indices == {"model.embed_tokens": [1, 2, 9]}
    other = make(model, METHODS["ia3"]())
    assert any("IA3 cannot train rows" in note for note in other.notes)


def test_tied_ends_stay_tied_when_trained_whole(
    base: Callable[..., Any], make: Callable[..., SFTTrainer], tmp_path: Path
) -> None:
    config = lora_config(modules_to_save=["lm_head", "embed_tokens"])
    trainer = make(base(), config)
    trainer.train()
    assert not config.ensure_weight_tying
    inner = trainer.model.get_base_model()
    head, embedding = inner.get_output_embeddings(), inner.get_input_embeddings()
    assert head.modules_to_save.default.weight is embedding.modules_to_save.default.weight
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = load_with_adapter(str(tmp_path / "adapter"), device=CPU, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(trainer.model))
    torch.testing.assert_close(logits(loaded.merge_and_unload()), logits(trainer.model), rtol=1e-4, atol=1e-4)


def test_a_peft_model_goes_on_and_other_adapters_rest(
    base: Callable[..., Any], make: Callable[..., SFTTrainer], tmp_path: Path
) -> None:
    first = make(base(), lora_config(r=4))
    first.train()
    first.save_model(str(tmp_path / "first"))
    model = peft.PeftModel.from_pretrained(base(), tmp_path / "first", is_trainable=True)
    model.add_adapter("second", lora_config(r=2))
    model.set_adapter("second")
    before = weights(model)
    trainer = make(model)
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".second." in name for name in changed)
    trainer.save_model(str(tmp_path / "both"))
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "both" / "second", adapter_name="second")
    torch.testing.assert_close(logits(again), logits(trainer.model))


def test_an_adapter_loaded_for_inference_is_not_trained(
    base: Callable[..., Any], make: Callable[..., SFTTrainer], tmp_path: Path
) -> None:
    attach(base(), lora_config()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="is_trainable=True"):
        make(peft.PeftModel.from_pretrained(base(), tmp_path / "adapter"))


def test_names_that_no_layer_has(base: Callable[..., Any], make: Callable[..., SFTTrainer]) -> None:
    """peft passes over them; a well-known guide spells embed_tokens without its s."""
    trainer = make(base(tie_word_embeddings=False), lora_config(modules_to_save=["lm_head", "embed_token"]))
    assert any("'embed_token'" in note and "did you mean 'embed_tokens'" in note for note in trainer.notes)
    with pytest.raises(ModelError, match=r"did you mean 'lm_head'"):
        make(base(), lora_config(modules_to_save=["lm_heads"]))
    with pytest.raises(ModelError, match=r"did you mean 'q_proj'"):
        make(base(), lora_config(target_modules=["q_prj"]))


def test_the_older_chat_format_learns_to_stop(
    base: Callable[..., Any], make: Callable[..., SFTTrainer], tiny_tokenizer: Any
) -> None:
    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = None
    model, tokenizer = setup_chat_format(base(), bare)
    trainer = make(model, lora_config(r=8), tokenizer=tokenizer, max_steps=60)
    trainer.train()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "why 3 fox fox fox "}], add_generation_prompt=True, return_tensors="pt"
    )
    out = trainer.model.eval().generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
    assert answer == "yes yes yes yes <|im_end|>"


@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`")
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_a_tied_end_is_told_for_it_cannot_be_merged(
    tied: bool, base: Callable[..., Any], make: Callable[..., SFTTrainer]
) -> None:
    """https://github.com/huggingface/peft/issues/2777"""
    trainer = make(base(tie_word_embeddings=tied), lora_config(r=2, target_modules=["q_proj", "embed_tokens"]))
    assert any("not merged or exported" in note for note in trainer.notes) is tied
    trainer.train()
    model, ids = trainer.model.eval(), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        adapted = model(ids).logits
        apart = (model.merge_and_unload()(ids).logits - adapted).abs().max()
    assert (apart > 1e-3) == tied
