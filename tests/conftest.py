"""What holds for every test: offline, seeded, and the shared data where they are."""

from __future__ import annotations

import gc
import ipaddress
import json
import logging
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The Hugging Face libraries read these when they are imported; pytest loads this file before any test module.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    OMP_NUM_THREADS="1",  # tiny tensors: threads cost more than they give, most of all beside another run
    TOKENIZERS_PARALLELISM="false",  # its threads do not outlive a fork, and it warns of that
)

ROOT = Path(__file__).resolve().parent.parent
SEED = 0


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """Fails whoever connects to another machine.

    It raises pytest's own `Failed`, which is no `Exception`: a library that takes a failed download lightly
    cannot swallow it. Child processes are held by the environment variables above only.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, _loopback_only(getattr(socket.socket, name)))
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Starts each test from the same seed, whichever tests ran before it; imports nothing to do so."""
    random.seed(SEED)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(SEED)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(SEED)


@pytest.fixture(autouse=True, scope="module")
def set_aside() -> None:
    """Lets no collection look at what there was before these tests: accelerate asks for one whenever a training begins,
    and 700,000 objects (imports, the other tests) would make each take half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder `data` of `shared/`, which lies beside the checkout or where HONED_SHARED says."""
    folder = Path(os.environ.get("HONED_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; HONED_SHARED=FOLDER names another place that holds data/")
    return folder


@pytest.fixture
def forked() -> Callable[[Callable[[], None]], int]:
    """Gives the id of a new process that does some work and ends; it need not import anything again."""

    def fork(work: Callable[[], None]) -> int:
        if child := os.fork():
            return child
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)

    return fork


def _loopback_only(method: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, *args: Any) -> Any:
        # The address comes last: connect(address), sendto(data, address), sendto(data, flags, address).
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(args[-1][0]):
            pytest.fail(f"tests are offline, but this one connects to {args[-1]}")
        return method(self, *args)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer with ChatML tokens and template, trained on the spot: any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = ["the quick brown fox asks why and answers with a word", "user assistant system yes no one two three"] * 8
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        model_max_length=512,
        chat_template=CHATML,
    )


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """Makes a small model of a family ("llama", "qwen3", "mistral", "gemma2", ...) with random weights."""
    return make_tiny_model


def make_tiny_model(family: str = "llama", *, dtype: Any = None, **changes: Any) -> Any:
    """What `tiny_model` gives, for programs that the tests start; in float32 unless told another format.

    Weights are drawn wide enough that a leak or a shifted position moves scores by far more than rounding does.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(SEED)
    config = AutoConfig.for_model(family, **{**shape, **changes})
    model = AutoModelForCausalLM.from_config(config)
    # transformers leaves the pad token's row at zero, which would count as a token that was never trained
    torch.nn.init.normal_(model.get_input_embeddings().weight.data[0], std=0.3)
    return model.to(dtype or torch.float32)


@pytest.fixture(scope="session")
def chat_rows() -> list[dict[str, Any]]:
    """Twelve short conversations of different lengths, two of them with two answers."""
    rows = []
    for number in range(12):
        question = f"why {number} " + "fox " * (number % 5)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "yes " * (number % 4 + 1)}]
        if number % 6 == 5:
            turns += [{"role": "user", "content": "and two"}, {"role": "assistant", "content": "no, three"}]
        rows.append({"messages": turns})
    return rows


@pytest.fixture
def model_folder(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    """A tiny model with its tokenizer."""
    folder = tmp_path / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path: Path, chat_rows: list[dict[str, Any]]) -> Path:
    """Twelve conversations."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in chat_rows), encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def loud_logger() -> Iterator[None]:
    """The command line quiets honed's logger for the whole process."""
    yield
    logging.getLogger("honed").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def own_prepared_data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data of a test stays out of the user's cache."""
    from honed.data.prepare import cache as prepared_cache

    made: list[Path] = []

    def folder(kind: str, *, root: Path | None = None) -> Path:
        if root is None and not made:
            made.append(tmp_path_factory.mktemp("prepared"))
        from honed.cache import cache_folder

        return cache_folder(kind, root=root or made[0])

    monkeypatch.setattr(prepared_cache, "cache_folder", folder)
