"""Creates tokenizers, and models with random weights or those of a MiniMind file, each in its own folder."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.errors import ModelError, RecipeError, RunError, first_line
from honed.quantities import counted

if TYPE_CHECKING:
    from honed.data.example import Example

STARTER = "starter"
VOCABULARY = 6400
SHAPE = {
    "dim": ("hidden_size", "hidden size [512]"),
    "layers": ("num_hidden_layers", "[8]"),
    "heads": ("num_attention_heads", "query heads [8]"),
    "kv_heads": ("num_key_value_heads", "key/value heads [2]"),
    "experts": ("num_experts", "routed experts, with --moe [4]"),
    "top_k": ("num_experts_per_tok", "routed experts that a token goes through [2]"),
}


def new_tokenizer(args: argparse.Namespace) -> None:
    """Trains a tokenizer on the text of rows of any format."""
    _start(args.folder)
    _save(args.folder, _trained_tokenizer(args))
    print(f"{args.folder}   the tokenizer")


def new_minimind(args: argparse.Namespace) -> None:
    """Creates a MiniMind model, dense or with a mixture of experts."""
    from honed.model.minimind.minimind import count_parameters

    _start(args.folder)
    if args.tokenizer and (args.data or args.vocab or args.thinking):
        raise RecipeError(
            "--tokenizer names a tokenizer, and --data, --vocab or --thinking would train another.",
            fix="leave one of them out",
        )
    if (args.num_experts or args.num_experts_per_tok) and not (args.moe or args.weights):
        raise RecipeError(
            "--experts and --top-k shape a mixture of experts, and this is a dense model.", fix="add --moe"
        )
    tokenizer = _read_tokenizer(args.tokenizer) if args.tokenizer else _trained_tokenizer(args)
    shape = {field: value for field, _ in SHAPE.values() if (value := getattr(args, field)) is not None}
    model = _imported(args, shape) if args.weights else _random(args, shape, tokenizer)
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"The tokenizer has {counted(len(tokenizer), 'token')}, the weights only {model.config.vocab_size:,}.",
            fix="give the tokenizer that the weights were trained with",
        )
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for holder in (model.config, model.generation_config):
        holder.update(ids)
    _save(args.folder, model, tokenizer)
    million = count_parameters(model) / 1e6
    config = model.config
    kind = f"{counted(config.num_experts, 'expert')}" if config.use_moe else "dense"
    print(
        f"{args.folder}   {million:.3f} million parameters ({kind}, {counted(config.num_hidden_layers, 'layer')} of "
        f"{config.hidden_size}, vocabulary {config.vocab_size:,})"
    )


def _random(args: argparse.Namespace, shape: dict[str, int], tokenizer: Any) -> Any:
    from transformers import set_seed

    from honed.model.minimind.config import MiniMindConfig
    from honed.model.minimind.minimind import MiniMindForCausalLM

    try:
        config = MiniMindConfig(**shape, use_moe=args.moe, vocab_size=len(tokenizer))
    except Exception as error:  # the library's own type, for inconsistent numbers
        raise ModelError(
            f"No such model can be made: {first_line(error.__cause__ or error)}", fix="change it"
        ) from None
    set_seed(args.seed)
    return MiniMindForCausalLM(config)


def _imported(args: argparse.Namespace, shape: dict[str, int]) -> Any:
    from honed.model.minimind.pth import load_pth

    changes: dict[str, Any] = {**shape, **({"use_moe": True} if args.moe else {})}
    return load_pth(args.weights, **changes)


def _read_tokenizer(name: str) -> Any:
    """Reads a tokenizer from a folder with nothing else, or from a model."""
    from honed.model.load.load import load_tokenizer

    if not (Path(name) / "tokenizer.json").is_file():
        return load_tokenizer(name)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # corrupt JSON, another version's file: all of different types
        raise ModelError(f"The tokenizer in {name} cannot be read: {first_line(error)}", fix="make it again") from None


def _trained_tokenizer(args: argparse.Namespace) -> Any:
    from honed.model.minimind.tokenizer import train_tokenizer

    unread: Counter[str] = Counter()
    vocab_size = args.vocab or VOCABULARY
    texts = read_texts(args.data or [STARTER], unread)
    tokenizer = train_tokenizer(texts, vocab_size=vocab_size, thinking=args.thinking)
    for reason, count in unread.most_common():
        print(f"note: {counted(count, 'row was', 'rows were')} left out: {reason}")
    if len(tokenizer) < vocab_size:
        print(f"note: the text gave {counted(len(tokenizer), 'token')}, not {vocab_size:,}; more text gives more")
    return tokenizer


def read_texts(files: list[str], unread: Counter[str]) -> Iterator[str]:
    """Yields the texts in rows of any format; `unread` counts the rows without text, by reason.

    Raises:
        DataError: a file cannot be read.
    """
    from honed.data.example import RowError
    from honed.data.read.formats import ReadOptions, read_example
    from honed.data.read.sources import read_rows

    for source, row in read_rows(files):
        try:
            yield from texts_of(read_example(row, source, ReadOptions()))
        except RowError as error:
            unread[error.reason] += 1


def texts_of(example: Example) -> Iterator[str]:
    """Yields a row's texts, without roles and templates.

    Raises:
        RowError: the row has token ids.
    """
    from honed.data.example import Conversation, Document, PromptCompletion, RowError

    if isinstance(example, Conversation):
        for message in example.messages:
            yield from filter(None, (message.reasoning, message.content))
    elif isinstance(example, PromptCompletion):
        yield from (example.prompt, example.completion)
    elif isinstance(example, Document):
        yield example.text
    else:
        raise RowError("token ids, which have no text", "train on the text that they were made from")


def _start(folder: Path) -> None:
    from honed.cli.console import quiet_libraries

    quiet_libraries()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists already.", fix="name a new folder, or delete that one")


def _save(folder: Path, *parts: Any) -> None:
    """Saves all parts next to the folder and renames, so that it is complete or does not exist."""
    from honed.cache import work_folder

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with work_folder(folder.parent) as beside:
            for part in parts:
                part.save_pretrained(beside)
            if folder.exists():
                folder.rmdir()
            beside.rename(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror or error}", fix="name another folder") from None
