"""A GGUF file of the llama architecture -> a folder in transformers' format, in fp32.

    gguf tensors  --dequantise, undo the q/k permutation, rename-->  model.safetensors
    gguf metadata --------------------------------------------->  config.json, generation_config.json
    tokens, types, merges, chat template ----------------------->  tokenizer.json, chat_template.jinja, ...

transformers' own loader (`from_pretrained(..., gguf_file=...)`, 5.23) changes things that matter for training: it drops
SmolLM's digit splitting from the tokenizer, sets pad to eos, leaves `model_max_length` unbounded and keeps the
quantisation in the config. Anything that cannot be converted with certainty (an unmapped tensor, an unknown
pre-tokenizer, scaled rope) is refused.

Sources: gguf's TENSOR_NAMES (gguf-py/gguf/constants.py), llama.cpp's convert_hf_to_gguf.py
(`LlamaModel.permute`, `get_vocab_base_pre`) and src/llama-vocab.cpp (pre-tokenizer regexes).
"""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.errors import ModelError
from honed.progress import Progress

if TYPE_CHECKING:
    import numpy as np

WEIGHTS = "model.safetensors"
PAD_TOKEN = "<|endoftext|>"

# llama.cpp's name of a pre-tokenizer -> whether it splits digits before GPT-2's byte-level BPE.
PRE_TOKENIZERS = {"smollm": True, "gpt-2": False}

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # values of gguf.TokenType, which is heavy to import

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True, slots=True)
class Gguf:
    """An opened GGUF file: metadata as plain values, tensors still quantised and memory-mapped."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Any]

    def need(self, key: str) -> Any:
        """A required metadata value."""
        if key not in self.metadata:
            raise self.error(f"has no {key!r} in its metadata")
        return self.metadata[key]

    def whole(self, key: str, default: int | None = None) -> int:
        """An integer metadata value; required unless there is a default."""
        value = self.need(key) if default is None else self.metadata.get(key, default)
        if not isinstance(value, int):
            raise self.error(f"has {value!r} as {key!r}, not a whole number")
        return value

    def error(self, what: str) -> ModelError:
        """The error that says why this file cannot be converted."""
        return ModelError(f"{self.path} {what}.", fix="convert it to a transformers folder by other means")


def convert_gguf(path: Path, folder: Path, *, note: str = "") -> None:
    """Writes the model in `path` to `folder`, an existing empty folder, showing progress. Not atomic.

    Args:
        note: a line to print first, for example why the conversion is repeated.

    Raises:
        ModelError: the file is damaged, or contains something that cannot be converted with certainty.
        OSError: `folder` cannot be written.
    """
    gguf = open_gguf(path)
    with Progress(desc=f"convert {path.name} to fp32", total=len(gguf.tensors), unit="tensor") as bar:
        if note:
            bar.write(note)
        names = tensor_names(gguf)
        config = llama_config(gguf)
        check_names(gguf, config, names)
        check_space(gguf, folder)
        write_weights(gguf, config, names, folder / WEIGHTS, bar)
        tokenizer = build_tokenizer(gguf)
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        generation_config(config).save_pretrained(folder)


def open_gguf(path: Path) -> Gguf:
    """Reads the metadata and memory-maps the tensors.

    Raises:
        ModelError: not a GGUF file, truncated, or not of the llama architecture.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (OSError, ValueError, LookupError, OverflowError) as error:
        raise ModelError(f"{path} is not a whole GGUF file: {error}.", fix="download the file again") from error
    gguf = Gguf(path=path, metadata=metadata, tensors={tensor.name: tensor for tensor in reader.tensors})
    if (architecture := gguf.need("general.architecture")) != "llama":
        raise gguf.error(f"is of the architecture {architecture!r}; only 'llama' can be converted")
    return gguf


def tensor_names(gguf: Gguf) -> dict[str, str]:
    """GGUF tensor name -> transformers parameter name, for every tensor in the file."""
    names = {name: transformers_name(name) for name in gguf.tensors}
    if unknown := [name for name, new in names.items() if new is None]:
        raise gguf.error(f"has a tensor with no place in transformers' Llama: {unknown[0]!r}")
    return {name: new for name, new in names.items() if new is not None}


def transformers_name(name: str) -> str | None:
    """'blk.3.attn_q.weight' -> 'model.layers.3.self_attn.q_proj.weight'; None if Llama has no such weight."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in LAYER_NAMES:
        return None
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight"


def llama_config(gguf: Gguf) -> Any:
    """The metadata as a transformers `LlamaConfig`."""
    from transformers import LlamaConfig

    scaling = gguf.metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise gguf.error(f"scales its rope ({scaling}), which is not converted")
    if "token_embd.weight" not in gguf.tensors:
        raise gguf.error("has no token_embd.weight")
    heads, width = gguf.whole("llama.attention.head_count"), gguf.whole("llama.embedding_length")
    head_dim = gguf.whole("llama.attention.key_length", width // heads)
    if (rotated := gguf.whole("llama.rope.dimension_count", head_dim)) != head_dim:
        raise gguf.error(f"rotates {rotated} of {head_dim} dimensions of a head, which Llama does not do")
    ids = special_ids(gguf)
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=_shape(gguf, "token_embd.weight")[0],
        hidden_size=width,
        intermediate_size=gguf.whole("llama.feed_forward_length"),
        num_hidden_layers=gguf.whole("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=gguf.whole("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=gguf.whole("llama.context_length"),
        rms_norm_eps=shortest(gguf.need("llama.attention.layer_norm_rms_epsilon")),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": shortest(gguf.metadata.get("llama.rope.freq_base", 10000.0)),
        },
        tie_word_embeddings="output.weight" not in gguf.tensors,
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
    )


def generation_config(config: Any) -> Any:
    """The token ids that start, end and pad a generated text; greedy unless the caller says otherwise."""
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )


def shortest(value: float) -> float:
    """The shortest decimal with the same float32 value: 9.999999747378752e-06 -> 1e-05, as the authors wrote it."""
    import numpy as np

    return float(str(np.float32(value)))


def check_names(gguf: Gguf, config: Any, names: dict[str, str]) -> None:
    """Refuses a file whose tensors do not have exactly the names and shapes of `LlamaForCausalLM`."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        parameters = LlamaForCausalLM(config).state_dict()
    wanted = {name: tuple(value.shape) for name, value in parameters.items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
    found = {new: _shape(gguf, name) for name, new in names.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        name = wrong[0]
        raise gguf.error(f"holds {name} as {found.get(name)}; its metadata call for {wanted.get(name)}")


def check_space(gguf: Gguf, folder: Path) -> None:
    """Raises OSError now if there is too little disk space, rather than after a minute's work."""
    needed = sum(4 * int(tensor.n_elements) for tensor in gguf.tensors.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, message, str(folder))


def write_weights(gguf: Gguf, config: Any, names: dict[str, str], file: Path, bar: Progress) -> None:
    """Dequantises every tensor into one safetensors file, one at a time.

    `safetensors.numpy.save_file` would hold the model in memory twice (1.1 GB for 135M parameters) and take ten times
    as long. Source: "Format" in the README of safetensors.
    """
    with file.open("wb") as out:
        out.write(safetensors_header({new: _shape(gguf, name) for name, new in names.items()}))
        for name in names:
            out.write(dequantised(gguf, name, config).data)
            bar.advance()


def safetensors_header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The header for fp32 tensors that follow each other in the order of `shapes`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the data to 8 bytes
    return len(text).to_bytes(8, "little") + text


def _shape(gguf: Gguf, name: str) -> tuple[int, ...]:
    """The shape with rows first; GGUF lists the fastest-varying dimension first."""
    return tuple(int(n) for n in reversed(gguf.tensors[name].shape))


def dequantised(gguf: Gguf, name: str, config: Any) -> np.ndarray:
    """One tensor as fp32 [rows, columns], with its rows in transformers' order."""
    import numpy as np
    from gguf.quants import dequantize

    tensor = gguf.tensors[name]
    try:
        weight = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise gguf.error(f"holds {name} as {tensor.tensor_type.name}, which cannot be dequantised") from error
    if name.endswith(".attn_q.weight"):
        weight = unpermute(weight, config.num_attention_heads)
    elif name.endswith(".attn_k.weight"):
        weight = unpermute(weight, config.num_key_value_heads)
    return np.ascontiguousarray(weight, dtype="<f4")


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes `LlamaModel.permute` of llama.cpp: reorders each head's rows from (x0 y0 x1 y1) to (x0 x1 y0 y1).

    llama.cpp rotates adjacent rows, transformers rotates row i with row i + head_dim / 2.

    Args:
        weight: [heads * head_dim, columns], of q_proj or k_proj.
        heads: heads of this projection; key-value heads for k_proj.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def special_ids(gguf: Gguf) -> dict[str, int | None]:
    """The ids of bos, eos, pad and unk; None for those that the file does not name.

    pad is the file's, unless that is missing or equal to eos, so that padding could not be told from the end of a turn;
    then it is '<|endoftext|>' if the file has this control token.
    """
    ids: dict[str, int | None] = {
        role: gguf.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    tokens = gguf.need("tokenizer.ggml.tokens")
    if ids["pad"] in (None, ids["eos"]) and PAD_TOKEN in tokens:
        own = tokens.index(PAD_TOKEN)
        if gguf.need("tokenizer.ggml.token_type")[own] == CONTROL:
            ids["pad"] = own
    return ids


def build_tokenizer(gguf: Gguf) -> Any:
    """transformers' fast tokenizer, with special tokens, chat template and context length."""
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = gguf.need("tokenizer.ggml.tokens")
    roles = {f"{role}_token": tokens[index] for role, index in special_ids(gguf).items() if index is not None}
    special = [token for token, kind in _typed(gguf) if kind == CONTROL]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(gguf),
        additional_special_tokens=[token for token in special if token not in roles.values()],
        model_max_length=gguf.whole("llama.context_length"),
        clean_up_tokenization_spaces=False,
        **roles,
    )
    tokenizer.chat_template = gguf.metadata.get("tokenizer.chat_template")
    return tokenizer


def _typed(gguf: Gguf) -> list[tuple[str, int]]:
    """Each token with its type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""
    tokens, types = gguf.need("tokenizer.ggml.tokens"), gguf.need("tokenizer.ggml.token_type")
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise gguf.error("has a token twice, or a token without a type")
    return list(zip(tokens, types, strict=True))


def byte_level_bpe(gguf: Gguf) -> Any:
    """The `tokenizers.Tokenizer`: vocabulary, merges, pre-tokenizer, and added tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    if (kind := gguf.need("tokenizer.ggml.model")) != "gpt2":
        raise gguf.error(f"has a tokenizer of the kind {kind!r}; known is 'gpt2' (byte-level BPE)")
    vocabulary = {token: index for index, (token, _) in enumerate(_typed(gguf))}
    merges = [_pair(gguf, merge) for merge in gguf.need("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizer(gguf)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _bos_adder(gguf)
    whole = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in _typed(gguf)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(whole)
    return tokenizer


def pre_tokenizer(gguf: Gguf) -> Any:
    """The pre-tokenizer, from llama.cpp's name for it."""
    from tokenizers import pre_tokenizers

    if (name := gguf.need("tokenizer.ggml.pre")) not in PRE_TOKENIZERS:
        raise gguf.error(f"has the pre-tokenizer {name!r}; known are {', '.join(PRE_TOKENIZERS)}")
    prefix = bool(gguf.metadata.get("tokenizer.ggml.add_space_prefix", False))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True)
    if not PRE_TOKENIZERS[name]:
        return byte_level
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


def _bos_adder(gguf: Gguf) -> Any:
    """A post-processor that puts bos before each text, if the file asks for it; None otherwise (SmolLM2)."""
    from tokenizers import processors

    if gguf.metadata.get("tokenizer.ggml.add_eos_token"):
        raise gguf.error("asks for eos after each text, which is not converted")
    if not gguf.metadata.get("tokenizer.ggml.add_bos_token"):
        return None
    index = gguf.need("tokenizer.ggml.bos_token_id")
    token = gguf.need("tokenizer.ggml.tokens")[index]
    return processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", f"{token}:1", "$B:1"], special_tokens=[(token, index)]
    )


def _pair(gguf: Gguf, merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not space or " " in right:
        raise gguf.error(f"has a merge that is not two pieces: {merge!r}")
    return left, right
