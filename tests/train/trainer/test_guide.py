"""Every snippet of TRL's guide to SFTTrainer (0.19) that trains, as it stands there but for the import.

What a snippet names on the Hub is a tiny model in a folder, or a few rows of the same shape; what it leaves to the
reader (`...`) is filled in before it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from honed.data.batch.collate import FlatCollator
from tests.train.trainer.guide import (
    ADAPTER,
    CLONE,
    COLLATOR,
    FLASH,
    FORMATS,
    FORMATTING,
    KEYWORDS,
    MODEL_ARGUMENTS,
    MODEL_OUTSIDE,
    NEFTUNE,
    PACKING,
    PACKING_FORMATTED,
    QUICK_START,
)

HUB = {  # name -> the family of the tiny model that stands for it
    "facebook/opt-350m": "opt", "Qwen/Qwen2.5-0.5B": "qwen2", "EleutherAI/gpt-neo-125m": "llama",
}  # fmt: skip
CHAT = [{"role": "user", "content": "why one"}, {"role": "assistant", "content": "yes two"}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "stanfordnlp/imdb": [{"text": f"the quick fox {n} " * (n + 1), "label": n % 2} for n in range(6)],
    "trl-lib/Capybara": [{"source": "x", "messages": CHAT * (n % 2 + 1), "num_turns": n} for n in range(6)],
    "philschmid/dolly-15k-oai-style": [{"messages": CHAT} for _ in range(6)],
    "json": [{"prompt": f"why {n}", "completion": "yes" * (n + 1)} for n in range(6)],
    "questions": [{"question": f"why {n}", "answer": "yes " * (n + 1)} for n in range(6)],
}


@pytest.fixture
def run(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Runs a snippet; gives its trainer. `names` are what the snippet takes for given."""
    import datasets

    def load(name: str, **options: Any) -> Dataset:
        return Dataset.from_list(ROWS[name])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    opt = {"ffn_dim": 64, "word_embed_proj_dim": 32}

    def model(family: str) -> Any:
        return tiny_model(family, **(opt if family == "opt" else {}))

    def run_snippet(snippet: str, **names: Any) -> Any:
        snippet = snippet.replace("from trl import", "from honed import").replace('"/tmp"', f'"{tmp_path}"')
        for name, family in HUB.items():
            if name in snippet:
                model(family).save_pretrained(tmp_path / family)
                tiny_tokenizer.save_pretrained(tmp_path / family)
                snippet = snippet.replace(f'"{name}"', f'"{tmp_path / family}"')
        given = {key: model(value) if key == "model" else value for key, value in names.items()}
        given = {"torch": torch, "tokenizer": tiny_tokenizer, **given}
        if "model" in given:
            given["model"].save_pretrained(tmp_path / "given")
            tiny_tokenizer.save_pretrained(tmp_path / "given")
            given["model"].config.name_or_path = str(tmp_path / "given")
        exec(compile(snippet, "<the guide>", "exec"), given)
        return given["trainer"]

    return run_snippet


def texts(trainer: Any) -> list[str]:
    table = trainer.train_dataset.table
    return [trainer.processing_class.decode(table.row([n]).input_ids) for n in range(len(table))]


@pytest.mark.parametrize("snippet", [QUICK_START, MODEL_OUTSIDE, NEFTUNE], ids=["name", "model", "neftune"])
def test_texts(snippet: str, run: Callable[..., Any]) -> None:
    """Defaults of TRL: three epochs, all of each text, an end token behind it."""
    trainer = run(snippet)
    assert trainer.state.global_step == 3 and trainer.state.log_history[-1]["train_loss"] > 0
    assert texts(trainer)[0] == ROWS["stanfordnlp/imdb"][0]["text"] + "<|im_end|>"
    assert trainer.ledger.trained_tokens > 0.8 * trainer.ledger.tokens
    assert trainer.args.max_length == 512


def test_conversations_from_files_and_the_hub(run: Callable[..., Any]) -> None:
    trainer = run(FORMATS)
    assert texts(trainer)[0].startswith("<|im_start|>user\nwhy one") and trainer.ledger.packed_rows == 1


def test_a_formatting_function(run: Callable[..., Any], tmp_path: Path) -> None:
    from honed import SFTConfig

    rows = Dataset.from_list(ROWS["questions"])
    trainer = run(FORMATTING, model="opt", dataset=rows, training_args=SFTConfig(output_dir=str(tmp_path)))
    assert texts(trainer)[0] == "### Question: why 0\n ### Answer: yes <|im_end|>"


@pytest.mark.parametrize(("snippet", "rows"), [(PACKING, "stanfordnlp/imdb"), (PACKING_FORMATTED, "questions")])
def test_packing(snippet: str, rows: str, run: Callable[..., Any]) -> None:
    trainer = run(snippet, dataset=Dataset.from_list(ROWS[rows]))
    assert trainer.ledger.documents == 6 and trainer.ledger.packed_rows == 1
    assert isinstance(trainer.data_collator, FlatCollator) and trainer.state.global_step == 3


def test_prompts_and_completions(run: Callable[..., Any]) -> None:
    """Only the completion is trained, and both with completion_only_loss=False, as the guide says."""
    rows = Dataset.from_list(ROWS["json"])
    completions = run(PACKING, dataset=rows)
    both = run(PACKING.replace("packing=True", "packing=True, completion_only_loss=False"), dataset=rows)
    assert 0 < completions.ledger.trained_tokens < both.ledger.trained_tokens == both.ledger.tokens - 6


def test_keywords_of_from_pretrained(run: Callable[..., Any]) -> None:
    trainer = run(KEYWORDS, dataset=Dataset.from_list(ROWS["stanfordnlp/imdb"]))
    assert trainer.model.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning", "ignore:.*tied.*:UserWarning")
def test_an_adapter(run: Callable[..., Any], tmp_path: Path) -> None:
    trainer = run(ADAPTER)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained)
    # the model's head and embedding are one weight, and stay one
    [whole] = [name for name in trained if "modules_to_save" in name]
    base = trainer.model.get_base_model()
    before = base.get_parameter(
        whole.removeprefix("base_model.model.").replace("modules_to_save.default", "original_module")
    )
    assert not torch.equal(trainer.model.get_parameter(whole), before)
    assert base.get_output_embeddings().weight is trainer.model.get_parameter(whole)
    assert Path("Qwen2.5-0.5B-SFT").resolve() == tmp_path / "Qwen2.5-0.5B-SFT"


def test_a_cloned_template(run: Callable[..., Any]) -> None:
    """TRL gives the new tokens as a third value since 0.20, and so does honed; the guide unpacks two."""
    trainer = run(CLONE, dataset=Dataset.from_list(ROWS["trl-lib/Capybara"]))
    assert texts(trainer)[0].startswith("<|im_start|>user\nwhy one") and trainer.state.global_step == 3


def test_model_arguments(run: Callable[..., Any]) -> None:
    """With the comma that the guide leaves out."""
    assert run(MODEL_ARGUMENTS, dataset=Dataset.from_list(ROWS["stanfordnlp/imdb"])).state.global_step == 3


@pytest.mark.filterwarnings("ignore:.*sdp_kernel.*")
def test_flash_attention_1(run: Callable[..., Any]) -> None:
    assert run(FLASH, model="qwen2", dataset=Dataset.from_list(ROWS["stanfordnlp/imdb"])).state.global_step == 3


def test_a_collator_for_rows_as_they_are(run: Callable[..., Any]) -> None:
    trainer = run(COLLATOR, model="qwen2", dataset=Dataset.from_list(ROWS["stanfordnlp/imdb"]))
    assert trainer.state.global_step == 3 and trainer.ledger is None


def test_the_end_of_turn_token(run: Callable[..., Any]) -> None:
    snippet = PACKING.replace("packing=True", 'eos_token="<|endoftext|>"')
    trainer = run(snippet, dataset=Dataset.from_list(ROWS["stanfordnlp/imdb"]))
    assert texts(trainer)[0].endswith(" <|endoftext|>")
