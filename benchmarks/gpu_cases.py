"""The cases of gpu_training.py: shapes, sides with settings, rows that fill a step, models with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from data_preparation import distinct_pairs, load_tokenizer
from training_step import with_adapter

LONGEST = 512  # maximum tokens of a document, unless one document fills the row
SLICE_LAYERS = 2  # of the small slice that is compared with float32
Row = dict[str, list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two libraries with a setting.

    Attributes:
        options: options of its SFTConfig.
        needs: modules that must be installed.
        attention: transformers' name of the implementation; None for its own choice, "flash" for flash_attention_2 if
            that package is installed, otherwise sdpa.
        dtype: dtype of the weights in full fine-tuning; with LoRA the frozen ones are bfloat16 on all sides.
        exact: its gradients must equal the others', and it competes for the best time.
        kernels: use transformers' kernels from the Hub.
        gpu: cannot be tried on a CPU.
    """

    package: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    attention: str | None = None
    dtype: str = "float32"
    exact: bool = True
    kernels: bool = False
    gpu: bool = False


KEEP_ALL = {"gradient_checkpointing": False}
FLAT = {"padding_free": True, "max_length": None}  # the documents of a step in one row, as packing would place them
ROUNDED = {"optim_args": "bf16_stochastic_round=True"}
SIDES = {
    "honed": Side(package="honed"),
    "trl": Side(package="trl"),
    "honed-no-checkpointing": Side(package="honed", options=KEEP_ALL),
    "trl-flat-no-checkpointing": Side(package="trl", options=FLAT | KEEP_ALL, attention="flash"),
    "honed-compile": Side(package="honed", options=KEEP_ALL | {"torch_compile": True}),
    "trl-flat": Side(package="trl", options=FLAT, attention="flash"),
    "honed-selective": Side(package="honed", options={"gradient_checkpointing": "selective"}),
    "trl-liger": Side(
        package="trl", options=FLAT | KEEP_ALL | {"use_liger_kernel": True}, attention="flash", needs=("liger_kernel",)
    ),
    "honed-auto": Side(package="honed", options={"gradient_checkpointing": "auto"}),
    "trl-no-checkpointing": Side(package="trl", options=KEEP_ALL),
    "honed-in-backward": Side(package="honed", options={"optimizer_in_backward": True, "max_grad_norm": 0.0}),
    "trl-flex": Side(package="trl", options=FLAT | KEEP_ALL, attention="flex_attention", gpu=True),
    "trl-kernels": Side(
        package="trl",
        options=FLAT | KEEP_ALL,
        attention="kernels-community/flash-attn2",
        kernels=True,
        needs=("kernels",),
    ),
    "honed-bf16-weights": Side(package="honed", options=ROUNDED, dtype="bfloat16", exact=False),
    "trl-bf16-weights": Side(package="trl", options=FLAT, attention="flash", dtype="bfloat16", exact=False),
    "honed-fp8": Side(
        package="honed", options=KEEP_ALL | {"torch_compile": True, "fp8": True}, needs=("torchao",), exact=False
    ),
}
REFERENCE = "float32"  # only the slice, plain transformers, one document at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A shape and how it is trained.

    Attributes:
        family: transformers' name of the model type.
        shape: fields of its configuration.
        rows, length: a step has exactly `rows * length` tokens, in one micro-batch.
        whole: every row is one document; otherwise documents are question and answer pairs.
        lora: rank 16 on all linear layers.
        nf4: the frozen weights in 4 bits (bitsandbytes).
        sides: the sides to measure by default.
    """

    family: str
    shape: dict[str, Any]
    rows: int
    length: int = 4096
    whole: bool = False
    lora: bool = False
    nf4: bool = False
    sides: tuple[str, ...] = ()


FIRST_SIDES = 4  # of each case, measured before all others: they give the most important ratios
FULL_SIDES = tuple(side for side in SIDES if side not in ("honed-selective", "honed-auto", "trl-no-checkpointing"))
LORA_SIDES = ("honed", "trl", "honed-no-checkpointing", "trl-flat-no-checkpointing", "honed-compile", "trl-flat",
              "trl-liger", "honed-fp8", "trl-flex", "trl-kernels")  # fmt: skip
WHOLE_SIDES = ("honed-no-checkpointing", "trl-flat-no-checkpointing", "honed-compile", "trl-liger", "honed-fp8")
QLORA_SIDES = ("honed", "trl", "honed-no-checkpointing", "trl-flat-no-checkpointing", "trl-flat")
LLAMA_3_8B = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}  # fmt: skip
QWEN3 = {
    "vocab_size": 151_936, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "tie_word_embeddings": True, "max_position_embeddings": 40_960,
}  # fmt: skip
CASES = {
    "llama-3-8b, LoRA": Case(family="llama", shape=LLAMA_3_8B, rows=1, lora=True, sides=LORA_SIDES),
    "llama-3-8b, LoRA, whole": Case(family="llama", shape=LLAMA_3_8B, rows=1, lora=True, whole=True, sides=WHOLE_SIDES),
    "qwen3-0.6b": Case(
        family="qwen3", shape=QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072}, rows=4, sides=FULL_SIDES
    ),
    "qwen3-1.7b": Case(
        family="qwen3", shape=QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144}, rows=2, sides=FULL_SIDES
    ),
    "mistral-7b, QLoRA": Case(
        family="mistral",
        shape=LLAMA_3_8B | {"vocab_size": 32_000, "sliding_window": None},
        rows=4,
        length=512,
        lora=True,
        nf4=True,
        sides=QLORA_SIDES,
    ),
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip


def tiny(case: Case) -> Case:
    """The same case with almost nothing to compute."""
    small = {"head_dim": 16} if "head_dim" in case.shape else {}
    return replace(case, shape=case.shape | TINY | small, rows=1, length=512)


def missing(side: Side, case: Case, device: str) -> str | None:
    """Why this side cannot run here."""
    if side.gpu and device == "cpu":
        return "needs a GPU"
    needs = [*side.needs, side.package, *(["datasets"] if side.package == "trl" else [])]
    needs += [*(["bitsandbytes"] if case.nf4 else []), *(["peft"] if case.lora else [])]
    absent = [name for name in needs if find_spec(name) is None]
    return f"not installed: pip install {' '.join(absent).replace('_', '-')}" if absent else None


def steps_of(case: Case, steps: int) -> list[list[Row]]:
    """For each step the same number of documents with `rows * length` tokens in total, of which answers are trained.

    Documents are real rows; one document per step is filled up with others and cut to reach the total. `whole` rows are
    concatenated real rows, cut at `length`.
    """
    rows = encoded(case)
    if case.whole:
        return [[cut(rows, case.length) for _ in range(case.rows)] for _ in range(steps)]
    longest = min(LONGEST, case.length // 2)
    pool = [row for row in islice(rows, 2_000) if len(row["input_ids"]) <= longest]
    mean = sum(len(row["input_ids"]) for row in pool) / len(pool)
    target = case.rows * case.length
    count = max(2, int(target / mean))
    rows = cycle(pool)
    return [filled([next(rows) for _ in range(count - 1)], pool, target) for _ in range(steps)]


def filled(chosen: list[Row], pool: list[Row], target: int) -> list[Row]:
    """The chosen documents and one that fills the rest; some are replaced if the rest is too large or too small."""
    by_size = sorted(pool, key=lambda row: len(row["input_ids"]))
    spare = cycle(range(len(pool) // 4))
    chosen = sorted(chosen, key=lambda row: len(row["input_ids"]))
    while (room := target - sum(len(row["input_ids"]) for row in chosen)) < 8:
        chosen = sorted([*chosen[:-1], by_size[next(spare)]], key=lambda row: len(row["input_ids"]))
    while room > LONGEST:
        chosen = sorted([*chosen[1:], by_size[-1 - next(spare)]], key=lambda row: len(row["input_ids"]))
        if (room := target - sum(len(row["input_ids"]) for row in chosen)) < 8:
            return filled(chosen, pool, target)
    return [*chosen, cut(cycle(pool), room)]


def cut(rows: Iterator[Row], length: int) -> Row:
    row: Row = {"input_ids": [], "labels": []}
    while len(row["input_ids"]) < length:
        more = next(rows)
        row = {key: row[key] + more[key] for key in row}
    return {key: values[:length] for key, values in row.items()}


def encoded(case: Case) -> Iterator[Row]:
    """All rows, repeated endlessly: tokens modulo the vocabulary, labels for the answer and its end."""
    tokenizer, size = any_tokenizer(), case.shape["vocab_size"]
    for question, answer in cycle(distinct_pairs()):
        prompt, completion = ([i % size for i in tokenizer.encode(text)] for text in (f"{question}\n", answer))
        completion.append(tokenizer.eos_token_id % size)
        yield {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def model_of(case: Case, *, device: str, dtype: str, attention: str | None = None, layers: int | None = None) -> Any:
    """A model with random weights on its device, the same for all sides of a case, with its adapter.

    Args:
        dtype: dtype of trained weights.
        attention: transformers' name; None for its own choice.
        layers: fewer layers than the case has.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = case.shape | ({"num_hidden_layers": layers} if layers else {})
    config = AutoConfig.for_model(case.family, bos_token_id=1, eos_token_id=2, pad_token_id=0, **shape)
    config.use_cache = False
    torch.manual_seed(0)
    options = {"dtype": torch.bfloat16 if case.lora else torch.float32}
    if attention:
        options["attn_implementation"] = attention
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, **options)
    if case.nf4:
        model = quantized(model, config, device, attention)
    torch.manual_seed(1)  # independent of earlier draws
    return with_adapter(model) if case.lora else model.to(getattr(torch, dtype))


def quantized(model: Any, config: Any, device: str, attention: str | None) -> Any:
    """The same weights in NF4 with double quantisation, as in QLoRA."""
    import torch
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    state, kind = model.state_dict(), type(model)
    del model
    options = {"dtype": torch.bfloat16} | ({"attn_implementation": attention} if attention else {})
    return kind.from_pretrained(
        None, config=config, state_dict=state, quantization_config=how, device_map={"": device}, **options
    )


@cache
def any_tokenizer() -> Any:
    """Qwen's tokenizer or the packaged model's; if neither is available (no network), one whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    try:
        return load_tokenizer()
    except Exception as error:  # pip and the network may raise anything
        print(f"tokens are bytes, for there is no tokenizer here: {str(error).splitlines()[0]}", flush=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", *letters])}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<end>")


def tokenizer_of() -> Any:
    tokenizer = any_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # within every case's vocabulary
    return tokenizer


def attention_of(side: Side) -> str | None:
    """transformers' name for the side's attention."""
    if side.attention != "flash":
        return side.attention
    return "flash_attention_2" if find_spec("flash_attn") is not None else "sdpa"


def rows_file(folder: Path, name: str) -> Path:
    return folder / f"{''.join(letter if letter.isalnum() else '-' for letter in name)}.json"
