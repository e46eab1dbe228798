"""GGUF files that were written, read by transformers, by honed's own reader, and by llama.cpp where it is installed."""

from __future__ import annotations

import copy
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.integrations.gguf
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from honed.errors import ModelError
from honed.model.export import gguf
from honed.model.export.export import Probe
from honed.model.export.gguf import PRE_TOKENIZERS, check_gguf, export_gguf, permute, pre_tokenizer_name, write_gguf
from honed.model.smollm2.gguf_folder import convert_gguf, unpermute

TEXTS = ["why 2024 isn't\n\n it", "你好，世界 <|im_start|>user\nhi<|im_end|>  x\t\ty", "I'VE   been\r\n ok… 🚀"]
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "qwen2": {"tie_word_embeddings": False, "head_dim": 8},
    "qwen3": {"head_dim": 128, "vocab_size": 410, "rms_norm_eps": 1e-5},  # transformers reads no head_dim for Qwen3
}
TOLERANCE = {"f32": 1e-6, "f16": 1e-2, "q8_0": 0.1}
PROBES = [Probe(ids=range(3, 40), n_prompt=9)]


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Callable[..., Any]:
    def make(family: str, **changes: Any) -> Any:
        made = tiny_model(family, **{**SHAPES[family], **changes}).eval()
        for name, p in made.named_parameters():  # transformers draws biases as zeros and norms as ones
            if name.endswith("bias") or "norm" in name:
                p.data += 0.3 * torch.randn_like(p)
        return made

    return make


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 60)[None]).logits


def change(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).pow(2).mean().sqrt() / expected.std())


@pytest.mark.parametrize("kind", gguf.KINDS)
@pytest.mark.parametrize("family", gguf.ARCHITECTURES)
def test_transformers_reads_the_model(
    family: str, kind: str, model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    written = model(family)
    write_gguf(written, tiny_tokenizer, tmp_path / "m.gguf", kind=kind)
    found = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    difference = change(logits(found), logits(written))
    assert difference < TOLERANCE[kind] and (difference > 1e-5) == (kind != "f32")


@pytest.mark.parametrize("family", gguf.ARCHITECTURES)
def test_transformers_reads_metadata_and_tokenizer(
    family: str, model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    written = model(family)
    write_gguf(written, tiny_tokenizer, tmp_path / "m.gguf", kind="f16")
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf")
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for key in (*shape, "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "model_type"):
        assert getattr(config, key) == getattr(written.config, key), key
    assert config.rms_norm_eps == pytest.approx(written.config.rms_norm_eps)
    assert config.rope_parameters["rope_theta"] == written.config.rope_parameters["rope_theta"]
    found = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        ids = tiny_tokenizer(text).input_ids
        assert found(text).input_ids == ids and found.decode(ids) == tiny_tokenizer.decode(ids)
    assert found.chat_template == tiny_tokenizer.chat_template
    roles = {
        "eos": tiny_tokenizer.eos_token_id,
        "bos": tiny_tokenizer.bos_token_id,
        "padding": tiny_tokenizer.pad_token_id,
    }
    fields = GGUFReader(tmp_path / "m.gguf").fields
    assert {role: fields[f"tokenizer.ggml.{role}_token_id"].contents() for role in roles} == roles
    if hasattr(transformers.integrations.gguf, "convert_gguf_tokenizer"):  # 5.17, without it, reads eos for bos
        assert [found.eos_token_id, found.bos_token_id, found.pad_token_id] == list(roles.values())


def test_our_own_reader_gives_the_same_weights_and_tokens(
    model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    written = model("llama")
    write_gguf(written, tiny_tokenizer, tmp_path / "m.gguf", kind="f32")
    (tmp_path / "folder").mkdir()
    convert_gguf(tmp_path / "m.gguf", tmp_path / "folder")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "folder").state_dict()
    assert found.keys() == written.state_dict().keys()
    assert all(torch.equal(found[name], weight) for name, weight in written.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert [tokenizer(text).input_ids for text in TEXTS] == [tiny_tokenizer(text).input_ids for text in TEXTS]


def test_biases_of_llama_are_permuted_as_well(model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> None:
    written = model("llama", attention_bias=True)
    write_gguf(written, tiny_tokenizer, tmp_path / "m.gguf", kind="f32")
    options = {"gguf_file": "m.gguf", "dtype": torch.float32, "config": written.config}
    found = AutoModelForCausalLM.from_pretrained(tmp_path, **options).eval()
    assert change(logits(found), logits(written)) < 1e-6


def test_permutations_undo_each_other() -> None:
    rows = np.arange(48.0).reshape(16, 3)
    assert permute(rows, 2)[:4, 0].tolist() == [0, 12, 3, 15]  # row i of a head beside row i + head_dim / 2
    np.testing.assert_array_equal(unpermute(permute(rows, 2), 2), rows)
    np.testing.assert_array_equal(permute(rows[:, 0], 2), permute(rows, 2)[:, 0])


@pytest.mark.parametrize("family", gguf.ARCHITECTURES)
def test_what_is_written_is_read_back_and_compared(
    family: str, model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(family).save_pretrained(tmp_path / "whole")
    tiny_tokenizer.save_pretrained(tmp_path / "whole")
    found = export_gguf(tmp_path / "whole", tmp_path / "m.gguf", kind="q8_0", probes=PROBES)
    assert found.passes and found.change > 1e-4 and found.tokens == 37
    monkeypatch.setattr(gguf, "permute", lambda rows, heads: rows[::-1].copy())
    monkeypatch.setattr(gguf, "_rotated_heads", lambda name, config: 2 if "q_proj.weight" in name else None)
    with pytest.raises(ModelError, match=r"bad.gguf is not the model"):
        export_gguf(tmp_path / "whole", tmp_path / "bad.gguf", kind="f32", probes=PROBES)
    assert not (tmp_path / "bad.gguf").exists()


# -- what cannot be written --


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma2", {}, "the architecture is 'gemma2'; known are llama, qwen2, qwen3"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rotated"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding window"),
        ("llama", {"hidden_act": "gelu"}, "activation"),
    ],
)
def test_other_models_are_refused(
    family: str, changes: dict[str, Any], message: str, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    with pytest.raises(ModelError, match=message):
        check_gguf(tiny_model(family, **changes).config, tiny_tokenizer, "f16")


def lower(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def by_words(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


def greedy_token(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("<t>", lstrip=True)])


def with_end(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)]
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lower, "changes texts first"),
        (by_words, "cuts text in another way"),
        (greedy_token, "swallows the spaces"),
        (with_end, "more than bos"),
    ],
)
def test_other_tokenizers_are_refused(
    spoil: Callable[[Any], None], message: str, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    spoil(tokenizer)
    with pytest.raises(ModelError, match=message):
        check_gguf(tiny_model().config, tokenizer, "f16")


def test_three_stops_and_unknown_kinds_are_refused(
    model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    written = model("llama")
    written.generation_config.eos_token_id = [2, 0, 7]
    with pytest.raises(ModelError, match="3 different tokens"):
        write_gguf(written, tiny_tokenizer, tmp_path / "m.gguf", kind="f16")
    with pytest.raises(ModelError, match="known are f32, f16, q8_0"):
        write_gguf(written, tiny_tokenizer, tmp_path / "m.gguf", kind="q4_k")


def test_pre_tokenizers_have_their_names(tiny_tokenizer: Any, shared_data: Path) -> None:
    state = json.loads((shared_data / "qwen_tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    assert pre_tokenizer_name(state) == "qwen2"
    tokenizer = copy.deepcopy(tiny_tokenizer).backend_tokenizer
    assert pre_tokenizer_name(json.loads(tokenizer.to_str())) == "gpt-2"
    digits = pre_tokenizers.Digits(individual_digits=True)
    regex = Regex(PRE_TOKENIZERS["llama-bpe"][0]["pattern"]["Regex"])
    for name, steps in {
        "smollm": [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "llama-bpe": [
            pre_tokenizers.Split(regex, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    }.items():
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        assert pre_tokenizer_name(json.loads(tokenizer.to_str())) == name


# -- llama.cpp itself --


@pytest.mark.parametrize("family", gguf.ARCHITECTURES)
def test_llama_cpp_reads_the_same(family: str, model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Token ids of texts, and the likeliest next tokens with their probabilities."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp: llama.cpp in a wheel")
    written = model(family)
    write_gguf(written, tiny_tokenizer, tmp_path / "m.gguf", kind="f32")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(tmp_path / "m.gguf"), 256, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)

    def ask(path: str, **body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    compared = 0
    for text in TEXTS:
        ids = tiny_tokenizer(text).input_ids
        assert ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"] == ids
        for prompt in (ids[:n] for n in range(4, len(ids), 4)):
            answer = ask("/completion", prompt=prompt, n_predict=1, temperature=0, n_probs=10, cache_prompt=False)
            with torch.no_grad():
                expected = written(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            for place in answer.get("completion_probabilities", []):  # none where a token is half a character
                for token in place["top_logprobs"]:
                    assert token["logprob"] == pytest.approx(float(expected[token["id"]]), abs=0.02)
                    compared += 1
    assert compared >= 50
