"""A whole model in transformers' format -> one GGUF file for llama.cpp and tools based on it.

    weights   --rename, permute llama's q and k, quantise-->  tensors
    config.json, generation_config.json ------------------->  metadata
    tokenizer.json, chat template ------------------------->  tokens, types, merges, name of the pre-tokenizer

For dense Llama, Qwen2 and Qwen3 with byte-level BPE. A GGUF file only names the architecture and the pre-tokenizer, and
llama.cpp implements both itself; anything not known to behave the same there is refused.

Sources: gguf's TENSOR_NAMES (gguf-py/gguf/constants.py), llama.cpp's convert_hf_to_gguf.py (`LlamaModel.permute`,
`get_vocab_base`) and src/llama-vocab.cpp (regexes of the pre-tokenizers). `gguf_folder.py` goes the other way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from honed.errors import ModelError
from honed.model.adapters.load_trained import load_for_generation
from honed.model.export.export import Comparison, Probe, compare, outputs
from honed.model.load.load import is_adapter, load_config
from honed.model.smollm2.gguf_folder import unpermute
from honed.progress import Progress

if TYPE_CHECKING:
    import numpy as np

# Format -> largest allowed change of the logits; see `honed.model.export.export.ALLOWED`.
ALLOWED = {"f32": 1e-3, "f16": 1e-2, "q8_0": 1e-1}
KINDS = tuple(ALLOWED)
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # the same names in transformers and in GGUF

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_NO_REGEX = {**_BYTE_LEVEL, "use_regex": False}
_SHARED = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


# llama.cpp's name -> the equivalent pre-tokenizer in tokenizer.json, without `trim_offsets`.
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    "qwen2": [_split(_WORDS + r"\p{N}|" + _SHARED), _NO_REGEX],
    "llama-bpe": [_split(_WORDS + r"\p{N}{1,3}|" + _SHARED), _NO_REGEX],
}


def check_gguf(config: Any, tokenizer: Any, kind: str) -> None:
    """Refuses what cannot be exported, before any work is done.

    Args:
        kind: one of `KINDS`.

    Raises:
        ModelError: the format, the architecture or the tokenizer has no known counterpart in llama.cpp.
    """
    if kind not in KINDS:
        raise ModelError(f"GGUF files cannot be written as {kind!r}.", fix=f"known are {', '.join(KINDS)}")
    if config.model_type not in ARCHITECTURES:
        raise _refused(f"the architecture is {config.model_type!r}; known are {', '.join(ARCHITECTURES)}")
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1) != 1:
        raise _refused(f"positions are rotated in a way of their own: {rope}")
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        raise _refused("some layers have a sliding window")
    if config.hidden_act != "silu":
        raise _refused(f"the activation is {config.hidden_act!r}")
    _check_tokenizer(tokenizer)


def config_of(folder: Path) -> Any:
    """The configuration of the model in a run's folder, or of its adapter's base model.

    Raises:
        ModelError: it cannot be read.
    """
    from peft import PeftConfig

    if not is_adapter(str(folder)):
        return load_config(str(folder))
    return load_config(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path))


def write_gguf(model: Any, tokenizer: Any, path: Path, *, kind: str) -> None:
    """Writes the file, showing progress. Memory holds the model and all converted tensors.

    Args:
        model: on the CPU, in float32.
        kind: one of `KINDS`, for matrices; vectors stay float32, and matrices that "q8_0" cannot divide into blocks of
            32 become float16.

    Raises:
        ModelError: see `check_gguf`.
    """
    from gguf import GGUFWriter, LlamaFileType

    check_gguf(model.config, tokenizer, kind)
    writer = GGUFWriter(path, model.config.model_type)
    writer.add_name(path.stem)
    file_types = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(file_types[kind])
    if kind == "q8_0":
        writer.add_quantization_version(2)
    add_config(writer, model.config)
    add_tokenizer(writer, tokenizer, size=model.config.vocab_size)
    add_ends(writer, tokenizer, model.generation_config)
    state = {name: weight for name, weight in model.state_dict().items() if not _is_tied(name, model.config)}
    with Progress(desc=f"write {path.name}", total=len(state), unit="tensor") as bar:
        for name, array, quant in tensors(state, model.config, kind):
            writer.add_tensor(name, array, raw_dtype=quant)
            bar.advance()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def export_gguf(whole: Path, path: Path, *, kind: str, probes: Sequence[Probe]) -> Comparison:
    """Writes a model's folder as one file, reads its tensors back, and compares the logits.

    Args:
        whole: a folder with an ordinary model, as `honed.model.export.export.export` writes it.
        kind: one of `KINDS`.
        probes: rows to compare on; at least one.

    Raises:
        ModelError: see `check_gguf`; or the logits differ too much. The file is then removed.
    """
    model, tokenizer = load_for_generation(str(whole), device=torch.device("cpu"), dtype=torch.float32)
    expected = outputs(model, probes)
    try:
        write_gguf(model, tokenizer, path, kind=kind)
        load_tensors(path, model)
        found = compare(expected, outputs(model, probes), allowed=ALLOWED[kind])
        if not found.passes:
            raise ModelError(
                f"{path.name} is not the model: its logits differ by {found.change:.2%} of their spread, "
                f"{found.allowed:.2%} is allowed for {kind}.",
                fix="write it as f32" if kind != "f32" else "report it, with the model's name",
            )
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return found


def load_tensors(path: Path, model: Any) -> None:
    """Loads a GGUF file's tensors into a model of the same shape, which is modified."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    state = {name: weight for name, weight in model.state_dict().items() if not _is_tied(name, model.config)}
    with torch.no_grad():
        for name, weight in state.items():
            tensor = found[gguf_name(name, model.config)]
            array = dequantize(tensor.data, tensor.tensor_type)
            if heads := _rotated_heads(name, model.config):
                array = unpermute(array.reshape(len(array), -1), heads).reshape(array.shape)
            weight.copy_(torch.tensor(array))  # a copy: the file is mapped read-only


def add_config(writer: Any, config: Any) -> None:
    """Writes shape, context, rotation and norms, whose names all three architectures share."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def tensors(state: dict[str, Any], config: Any, kind: str) -> Iterator[tuple[str, np.ndarray, Any]]:
    """The GGUF name, data and format of each weight.

    Raises:
        ModelError: GGUF has no name for a weight.
    """
    from gguf.quants import quantize

    for name, weight in state.items():
        array = weight.detach().float().numpy()
        if heads := _rotated_heads(name, config):
            array = permute(array, heads)
        quant = quant_of(array, kind)
        yield gguf_name(name, config), quantize(array, quant), quant


def gguf_name(name: str, config: Any) -> str:
    """The GGUF name of a transformers weight, from gguf's own table.

    Raises:
        ModelError: the table has no name for it.
    """
    names = _names(config.model_type, config.num_hidden_layers)
    new = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if new is None:
        raise _refused(f"it has no name for the weight {name}")
    return str(new)


@cache
def _names(model_type: str, layers: int) -> Any:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    [architecture] = [number for number, name in MODEL_ARCH_NAMES.items() if name == model_type]
    return get_tensor_name_map(architecture, layers)


def _rotated_heads(name: str, config: Any) -> int | None:
    """Number of heads of a projection whose rows llama.cpp stores in another order; None for other weights."""
    if config.model_type != "llama":
        return None
    if ".self_attn.q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".self_attn.k_proj." in name else None


def quant_of(array: np.ndarray, kind: str) -> Any:
    """The format of one tensor, a `gguf.GGMLQuantizationType`."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if array.ndim < 2:
        return GGMLQuantizationType.F32
    quant = GGMLQuantizationType[kind.upper()]
    block, _ = GGML_QUANT_SIZES[quant]
    return quant if array.shape[-1] % block == 0 else GGMLQuantizationType.F16


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders each head's rows from (x0 x1 .. y0 y1 ..) to (x0 y0 x1 y1 ..), like `LlamaModel.permute` of llama.cpp.

    transformers rotates row i with row i + head_dim / 2; llama.cpp, in its llama models only, rotates adjacent rows.

    Args:
        rows: [heads * head_dim, ...], the weight or bias of q_proj or k_proj.
        heads: heads of this projection; key-value heads for k_proj.
    """
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def add_tokenizer(writer: Any, tokenizer: Any, *, size: int) -> None:
    """Writes tokens with their types, merges, the pre-tokenizer's name and the chat template.

    Args:
        size: number of rows in the embedding; rows without a token are named [PADn].
    """
    from gguf import TokenType

    state = _state(tokenizer)
    texts = {index: token for token, index in tokenizer.get_vocab().items()}
    kinds = {
        token["id"]: TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        for token in state["added_tokens"]
    }
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(state))
    writer.add_token_list([texts.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types(
        [kinds.get(index, TokenType.NORMAL if index in texts else TokenType.UNUSED) for index in range(size)]
    )
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    )
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(_adds_bos(tokenizer))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def add_ends(writer: Any, tokenizer: Any, generation_config: Any) -> None:
    """Writes the bos, eos and pad tokens. A second stop token becomes end-of-turn, at which llama.cpp stops as well.

    Raises:
        ModelError: there are more than two stop tokens.
    """
    stops = generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops or [])
    if tokenizer.eos_token_id in stops or not stops:
        stops = [tokenizer.eos_token_id, *(stop for stop in stops if stop != tokenizer.eos_token_id)]
    if len(stops) > 2:
        raise _refused(f"answers end at {len(stops)} different tokens, and two can be named")
    named = [*zip((writer.add_eos_token_id, writer.add_eot_token_id), stops, strict=False)]
    named += [(writer.add_bos_token_id, tokenizer.bos_token_id), (writer.add_pad_token_id, tokenizer.pad_token_id)]
    for add, index in named:
        if index is not None:
            add(index)


def pre_tokenizer_name(state: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer.

    Args:
        state: the tokenizer, as in tokenizer.json.

    Raises:
        ModelError: llama.cpp has no name for it.
    """
    found = state["pre_tokenizer"] or {}
    steps = found["pretokenizers"] if found.get("type") == "Sequence" else [found]
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for name, known in PRE_TOKENIZERS.items():
        if steps == known:
            return name
    raise _refused(f"the tokenizer cuts text in another way than {', '.join(PRE_TOKENIZERS)}")


def _check_tokenizer(tokenizer: Any) -> None:
    state = _state(tokenizer)
    name, model = pre_tokenizer_name(state), state["model"]
    normalizer = (state["normalizer"] or {}).get("type")
    problems = {
        f"its model is {model['type']}, not BPE": model["type"] != "BPE",
        f"it changes texts first ({normalizer})": normalizer not in (None, "NFC"),  # llama.cpp omits Qwen's NFC
        "it writes unknown bytes in a way of its own": bool(model.get("byte_fallback")),
        "ignore_merges is not that of its pre-tokenizer": bool(model.get("ignore_merges")) != (name == "llama-bpe"),
        "an added token swallows the spaces next to it": any(
            token["lstrip"] or token["rstrip"] or token["single_word"] for token in state["added_tokens"]
        ),
    }
    for problem, there in problems.items():
        if there:
            raise _refused(f"of the tokenizer: {problem}")
    _adds_bos(tokenizer)


def _adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts bos before each text; anything else around the text is refused."""
    with_them, without = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    if with_them not in (without, [tokenizer.bos_token_id, *without]):
        raise _refused("the tokenizer puts more than bos around a text")
    return bool(with_them != without)


def _state(tokenizer: Any) -> dict[str, Any]:
    if not getattr(tokenizer, "is_fast", False):
        raise _refused("the tokenizer is not from the tokenizers library")
    return dict(json.loads(tokenizer.backend_tokenizer.to_str()))


def _is_tied(name: str, config: Any) -> bool:
    return name == "lm_head.weight" and config.tie_word_embeddings


def _refused(why: str) -> ModelError:
    return ModelError(f"No GGUF file can be written: {why}.", fix="export without --gguf, and convert by other means")
