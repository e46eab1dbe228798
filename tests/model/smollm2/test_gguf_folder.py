"""A small llama GGUF written on the spot, converted, and held against what was written and transformers."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quant
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from honed.errors import ModelError
from honed.model.smollm2 import gguf_folder
from honed.model.smollm2.gguf_folder import convert_gguf, safetensors_header, shortest, transformers_name, unpermute

WIDTH, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 64, 96, 2, 4, 2, 16, 128
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"]
TYPES = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.USER_DEFINED]
MERGES = ["Ċ Ċ", "h e", "l l", "he ll", "2 0", "Ġ t"]
VOCABULARY = [*SPECIAL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}\n\n"

Writes = Callable[[gguf.GGUFWriter], None]


def transformers_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under transformers' names, tied head."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(scale=0.2, size=shape).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": draw(len(VOCABULARY), WIDTH),
        "model.norm.weight": 1 + draw(WIDTH),
    }
    for layer in range(LAYERS):
        shapes = {
            "self_attn.q_proj": (HEADS * HEAD_DIM, WIDTH),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, WIDTH),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, WIDTH),
            "self_attn.o_proj": (WIDTH, HEADS * HEAD_DIM),
            "mlp.gate_proj": (FFN, WIDTH),
            "mlp.up_proj": (FFN, WIDTH),
            "mlp.down_proj": (WIDTH, FFN),
        }
        weights |= {f"model.layers.{layer}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = 1 + draw(WIDTH)
    return weights


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute`, as in llama.cpp's convert_hf_to_gguf.py."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def to_gguf_name(name: str) -> str:
    """transformers' name -> GGUF's, by gguf's own table (the converter under test has another)."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    found = table.get_name(name, try_suffixes=(".weight",))
    assert found is not None
    return found


def write_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_types(TYPES + [gguf.TokenType.NORMAL] * (len(VOCABULARY) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)


def write_tiny(
    path: Path,
    *,
    quant: Quant = Quant.F32,
    weights: dict[str, np.ndarray] | None = None,
    architecture: str = "llama",
    pre: str = "smollm",
    tokens: list[str] | None = None,
    pad: int = 2,
    extra: Writes = lambda writer: None,
) -> Path:
    """A whole GGUF file; matrices in `quant`, vectors in fp32."""
    writer = gguf.GGUFWriter(path, architecture)
    write_metadata(writer)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens or VOCABULARY)
    writer.add_pad_token_id(pad)
    extra(writer)
    for name, weight in (weights or transformers_weights()).items():
        heads = {"q_proj.weight": HEADS, "k_proj.weight": KV_HEADS}.get(".".join(name.split(".")[-2:]))
        rows = permute(weight, heads) if heads else weight
        kind = quant if weight.ndim == 2 else Quant.F32
        writer.add_tensor(to_gguf_name(name), gguf.quants.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")


def converted(path: Path, **options: Any) -> Path:
    folder = path.parent / f"{path.stem}-folder"
    folder.mkdir()
    convert_gguf(path, folder, **options)
    return folder


# -- weights --


def test_fp32_weights_come_back_bit_for_bit(tiny: Path) -> None:
    found = load_file(converted(tiny) / "model.safetensors")
    written = transformers_weights()
    assert found.keys() == written.keys()
    for name, weight in written.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


@pytest.mark.parametrize(("quant", "tolerance"), [(Quant.F16, 1e-3), (Quant.Q8_0, 0.01), (Quant.Q4_1, 0.1)])
def test_quantised_weights_come_back_within_the_rounding_of_their_format(
    tmp_path: Path, quant: Quant, tolerance: float
) -> None:
    found = load_file(converted(write_tiny(tmp_path / "tiny.gguf", quant=quant)) / "model.safetensors")
    for name, weight in transformers_weights().items():
        np.testing.assert_allclose(found[name], weight, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("quant", [Quant.F32, Quant.Q8_0, Quant.Q4_1])
def test_weights_and_logits_equal_those_of_transformers_own_gguf_loader(tmp_path: Path, quant: Quant) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", quant=quant)
    ours = AutoModelForCausalLM.from_pretrained(converted(path))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)
    ids_BL = torch.tensor([[1, 17, 42, 99, 2]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids_BL).logits, theirs(ids_BL).logits, rtol=0, atol=1e-5)


def test_unpermute_undoes_llama_cpp() -> None:
    weight = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    assert not np.array_equal(permute(weight, 2), weight)
    np.testing.assert_array_equal(unpermute(permute(weight, 2), 2), weight)


def test_an_untied_head_is_kept(tmp_path: Path) -> None:
    head = np.ones((len(VOCABULARY), WIDTH), dtype=np.float32)
    folder = converted(write_tiny(tmp_path / "t.gguf", weights=transformers_weights() | {"lm_head.weight": head}))
    assert not AutoConfig.from_pretrained(folder).tie_word_embeddings
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder).lm_head.weight.detach(), torch.ones(head.shape))


def test_weights_have_the_permissions_of_their_neighbours(tiny: Path) -> None:
    modes = {file.stat().st_mode for file in converted(tiny).iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("length", range(8))
def test_data_begin_at_a_multiple_of_eight_bytes(length: int) -> None:
    header = safetensors_header({"n" * (length + 1): (2, 3)})
    assert len(header) % 8 == 0
    assert int.from_bytes(header[:8], "little") == len(header) - 8


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "rope_freqs.weight", "blk.0"])
def test_names_without_a_place_in_llama(name: str) -> None:
    assert transformers_name(name) is None


# -- config --


def test_config_holds_the_metadata_and_no_quantisation(tiny: Path) -> None:
    folder = converted(tiny)
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "hidden_size": WIDTH,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": len(VOCABULARY),
    }
    assert {key: config[key] for key in expected} == expected
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    generation = GenerationConfig.from_pretrained(folder)
    assert {key: config[key] for key in ids} == ids == {key: getattr(generation, key) for key in ids}


def test_shortest_decimal_of_a_float32() -> None:
    assert shortest(float(np.float32(1e-5))) == 1e-5
    assert shortest(100000.0) == 100000.0


# -- tokenizer --


def tokenizer_of(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(converted(path))


def test_every_digit_is_its_own_token(tiny: Path) -> None:
    # The vocabulary has "20" and its merge, so nothing but the pre-tokenizer keeps the digits apart.
    assert tokenizer_of(tiny).tokenize("2024") == ["2", "0", "2", "4"]


def test_line_ends_before_a_number_are_merged(tiny: Path) -> None:
    """The digit ends the piece before it, so that GPT-2's pattern takes both line ends as one."""
    assert tokenizer_of(tiny).tokenize("\n\n1.") == ["ĊĊ", "1", "."]


def test_gpt2_pre_tokenizer_merges_digits(tmp_path: Path) -> None:
    assert tokenizer_of(write_tiny(tmp_path / "t.gguf", pre="gpt-2")).tokenize("2024") == ["20", "2", "4"]


def test_ids_are_those_of_the_file_and_text_survives(tiny: Path) -> None:
    tokenizer = tokenizer_of(tiny)
    assert tokenizer.convert_ids_to_tokens(range(len(VOCABULARY))) == VOCABULARY
    assert len(tokenizer) == len(VOCABULARY)
    text = " hello  there\n\n1. Größe, 你好 🙂 2024 ."
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_roles_and_lengths(tiny: Path) -> None:
    tokenizer = tokenizer_of(tiny)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.model_max_length == CONTEXT
    assert tokenizer("hello").input_ids == tokenizer("hello", add_special_tokens=False).input_ids


def test_control_tokens_are_special_and_user_defined_ones_are_whole(tiny: Path) -> None:
    tokenizer = tokenizer_of(tiny)
    ids = tokenizer("<|im_start|>he<tool><|im_end|>").input_ids
    assert ids == [1, VOCABULARY.index("he"), 3, 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "he<tool>"
    assert set(tokenizer.all_special_ids) == {0, 1, 2}


def test_offsets_cover_the_text(tiny: Path) -> None:
    offsets = tokenizer_of(tiny)(" the 20", return_offsets_mapping=True)["offset_mapping"]
    assert [start for start, _ in offsets] == [0, *(end for _, end in offsets[:-1])]


def test_chat_template_is_kept_verbatim(tiny: Path) -> None:
    folder = converted(tiny)
    assert (folder / "chat_template.jinja").read_bytes().decode() == TEMPLATE
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE


def test_bos_is_added_where_the_file_asks_for_it(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(write_tiny(tmp_path / "t.gguf", extra=lambda w: w.add_add_bos_token(True)))
    assert tokenizer("he").input_ids == [1, VOCABULARY.index("he")]


def test_a_pad_of_its_own_is_kept(tmp_path: Path) -> None:
    assert tokenizer_of(write_tiny(tmp_path / "t.gguf", pad=3)).pad_token_id == 3


def test_pad_stays_eos_where_there_is_no_endoftext(tmp_path: Path) -> None:
    tokens = ["<unknown>", *VOCABULARY[1:]]
    assert tokenizer_of(write_tiny(tmp_path / "t.gguf", tokens=tokens)).pad_token_id == 2


# -- refusals --


def add_vector(name: str) -> Writes:
    return lambda writer: writer.add_tensor(name, np.ones(8, dtype=np.float32))


def scale_rope(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pre": "qwen2"}, "pre-tokenizer 'qwen2'"),
        ({"extra": add_vector("rope_freqs.weight")}, "rope_freqs.weight"),
        ({"extra": add_vector("blk.2.attn_norm.weight")}, r"model.layers.2.input_layernorm.weight as \(8,\)"),
        ({"extra": scale_rope}, "scales its rope"),
        ({"extra": lambda w: w.add_add_eos_token(True)}, "eos after each text"),
        ({"extra": lambda w: w.add_key_length(32)}, "rotates 16 of 32"),
        ({"tokens": [*VOCABULARY[:-1], "he"]}, "a token twice"),
    ],
)
def test_what_cannot_be_converted_for_certain_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        converted(write_tiny(tmp_path / "t.gguf", **options))


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    weights = transformers_weights()
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight as None"):
        converted(write_tiny(tmp_path / "t.gguf", weights=weights))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="architecture 'gemma'"):
        converted(write_tiny(tmp_path / "t.gguf", architecture="gemma"))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        converted(tmp_path / "t.gguf")


def test_a_file_cut_short_is_refused(tiny: Path) -> None:
    tiny.write_bytes(tiny.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        converted(tiny)


def test_a_full_disk_is_told_before_the_work(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_folder, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1000)))
    with pytest.raises(OSError, match="MB are needed") as caught:
        converted(tiny)
    assert caught.value.errno == errno.ENOSPC


def test_the_note_is_shown(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(tiny, note="made again: it was broken")
    shown = capsys.readouterr()
    assert "made again: it was broken" in shown.err
    assert shown.out == ""
