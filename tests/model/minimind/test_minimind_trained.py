"""MiniMind in training: seams, packed rows, the balance of its experts, adapters, and quantised bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.data.batch.table import PackedRow
from honed.model.load.load import load_model
from honed.model.load.quantize import is_quantized, quantization_config
from honed.ops import attention
from honed.train.forward import seams
from tests.model.minimind.small_minimind import each_kind, make, some_ids


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")  # it rounds its inputs to float16, and says so
@pytest.mark.parametrize("bits", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_quantised_it_stays_near_itself_and_takes_an_adapter(kind: str, bits: str, tmp_path: Path) -> None:
    """Every linear layer, those of the experts too, but for the head and the router; gradients reach the adapter."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    from honed.model.adapters.adapters import lora_config, ready_to_train

    shape = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "initializer_range": 0.1}
    plain = make(kind, dtype=torch.float32, **shape)
    plain.save_pretrained(tmp_path)
    config = quantization_config(bits, dtype=torch.float32)
    model = load_model(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32, quantization_config=config)
    exact = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert is_quantized(model) and exact == {"lm_head"}
    layers = sum(isinstance(module, torch.nn.Linear) for module in plain.modules())
    assert sum(isinstance(module, torch.nn.Linear) for module in model.modules()) == layers
    ids = some_ids(1, 30)
    with torch.no_grad():
        difference = (model.eval()(ids).logits - plain(ids).logits).pow(2).mean().sqrt() / plain(ids).logits.std()
    assert difference < {"nf4": 0.5, "int8": 0.1}[bits]
    adapted, _ = ready_to_train(model, lora_config(r=2))
    adapted.train()(ids, labels=ids).loss.backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert len(trained) == 2 * (layers - 1) and all(p.grad is not None for p in trained)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_seams_fit(kind: str, dtype: torch.dtype) -> None:
    found = seams.find_seams(make(kind, dtype=dtype))
    assert (found.flat, found.scoring, found.notes) == (True, True, [])


def test_experts_that_leak_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without boundaries the second document attends to the first."""
    model = make("moe", dtype=torch.float32)
    plain = attention.document_attention

    def leaking(*args: Any, cu_seq_lens_q: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    monkeypatch.setattr(attention, "document_attention", leaking)
    assert not seams.find_seams(model).flat
    monkeypatch.undo()
    attention.register()


def packed(*lengths: int) -> list[PackedRow]:
    rows = []
    for length in lengths:
        weights = torch.ones(length).numpy()
        weights[0] = 0.0
        rows.append(PackedRow(input_ids=some_ids(length).numpy(), weights=weights, lengths=(length,)))
    return rows


@each_kind
def test_flat_rows_give_each_document_its_own_scores_and_gradients(kind: str) -> None:
    model, documents = make(kind, router_aux_loss_coef=0.0), packed(9, 2, 30, 5)
    expected = torch.cat([next_token_losses(model, row) for row in documents])
    wanted = torch.autograd.grad(expected.sum(), model.lm_head.weight)[0]
    with seams.opened(model, seams.Seams(flat=True, scoring=True)) as head:
        scores, _ = seams.token_scores(model, FlatCollator()(documents), head)
        found = torch.autograd.grad(scores.loss, model.model.embed_tokens.weight)[0]
    torch.testing.assert_close(scores.nll_N, expected.detach())
    torch.testing.assert_close(found, wanted)


def next_token_losses(model: Any, row: PackedRow) -> torch.Tensor:
    ids = torch.from_numpy(row.input_ids).long()[None]
    return F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")


@pytest.mark.parametrize("kind", ["moe", "moe plain"])
def test_balance_of_flat_and_padded_batches_is_that_of_single_documents(kind: str) -> None:
    """Padding is not counted, and documents in one row are sequences of their own."""
    model, documents = make(kind).train(), packed(9, 2, 30)
    alone = [model(torch.from_numpy(row.input_ids).long()[None]).aux_loss for row in documents]
    padded = PaddedCollator(pad_token_id=0)(documents)
    in_rows = model(padded["input_ids"], attention_mask=padded["attention_mask"]).aux_loss
    with seams.opened(model, seams.Seams(flat=True)):
        flat = {key: value for key, value in FlatCollator()(documents).items() if key not in seams.NOT_FOR_THE_MODEL}
        in_one_row = model(**flat).aux_loss
    expected = torch.stack(alone).mean()
    torch.testing.assert_close(in_rows, expected)
    torch.testing.assert_close(in_one_row, expected)


def test_loss_adds_the_balance_in_training_only() -> None:
    model, ids = make("moe", router_aux_loss_coef=0.5), some_ids(2, 9)
    plain = model(ids, labels=ids)
    language = F.cross_entropy(plain.logits[:, :-1].reshape(-1, 400), ids[:, 1:].reshape(-1))
    torch.testing.assert_close(plain.loss.double(), language, rtol=1e-5, atol=1e-5)
    trained = model.train()(ids, labels=ids)
    torch.testing.assert_close(trained.loss - plain.loss, 0.5 * trained.aux_loss)
    model.config.output_router_logits = False
    assert model(ids, labels=ids).aux_loss is None
    assert make()(ids).aux_loss is None


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_gradient_checkpointing_changes_no_gradient(kind: str, reentrant: bool) -> None:
    model, ids = make(kind, use_cache=False).train(), some_ids(2, 9)
    model(ids, labels=ids).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_lora_reaches_every_linear_layer_but_head_and_router(kind: str) -> None:
    pytest.importorskip("peft")
    from honed.model.adapters.adapters import attach, lora_config

    model, ids = make(kind, dtype=torch.float32), some_ids(1, 6)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    before = model(ids).logits
    adapted = attach(model, lora_config(r=2, alpha=4))
    torch.testing.assert_close(adapted(ids).logits, before)
    adapters = [name for name, _ in adapted.named_modules() if name.endswith("lora_A")]
    assert len(adapters) == len(linear) - 1
    adapted.train()(ids, labels=ids).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in adapted.parameters())


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_dropout_only_while_training(kind: str) -> None:
    model, ids = make(kind, dropout=0.5), some_ids(1, 9)
    torch.testing.assert_close(model(ids).logits, model(ids).logits)
    assert not torch.allclose(model.train()(ids).logits, model(ids).logits)
