"""Recipes: a YAML file and key=value pairs become frozen dataclasses; unknown keys are refused with a suggestion."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from honed.errors import RecipeError
from honed.recipe_names import key_called

# The defaults that honed recommends; `SFTConfig` itself keeps TRL's.
TRAIN_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": "auto",
    "logging_steps": 1,
    "save_strategy": "no",
    "seed": 0,
}

PLUS_EXPERTS = "+experts"  # suffix of "nf4" or "fp4" in `quantization`: stacked experts, too

_FLOAT = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+$")


class _StrictLoader(yaml.SafeLoader):
    """A key that a mapping has twice is an error: PyYAML would keep the last value and ignore the others."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"found the key {key.value!r} twice", key.start_mark)
            seen.add(str(key.value))
        return node


class _Loader(_StrictLoader):
    """YAML 1.1 reads 2e-4 as text and `no` as false; here 2e-4 is a number and `no` is text (save_strategy=no)."""


class _Dumper(yaml.SafeDumper):
    """Quotes strings that `_Loader` would read as numbers."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("+-.0123456789"))
for _letter in "yYnNoO":  # otherwise yes, no, on and off would be booleans
    _Loader.yaml_implicit_resolvers[_letter] = [
        (tag, pattern)
        for tag, pattern in _Loader.yaml_implicit_resolvers.get(_letter, [])
        if tag != "tag:yaml.org,2002:bool"
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecipe:
    """The training data; `data: FILE` is short for `files`. See `honed.data.prepare.options.PrepareOptions`.

    Attributes:
        files: files, folders, patterns and Hub ids (see `honed.data.read.sources.shards`).
        sources: instead of `files`, several, each with its weight, cap and options (see `honed.data.mix.mixture`).
        held_out: file to evaluate on.
        eval_share: instead of `held_out`, the share of the rows to hold out (see `honed.data.mix.split`).
        streaming: read, render and pack rows while training, in constant memory (see `honed.data.prepare.stream`).
        shuffle_buffer: while streaming, the number of rows held and shuffled at a time.
        cache: keep prepared data on disk (`honed cache` shows and clears it).
        workers: processes that prepare the rows; the result does not depend on it.
        share_prefixes: compute the common prefix of documents only once; "auto" where the model allows it.
    """

    files: tuple[str, ...] = ("starter",)
    sources: tuple[Mapping[str, Any], ...] | None = None
    format: str = "auto"
    template: str = "auto"
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    train_on: str = "assistant"
    train_roles: tuple[str, ...] = ("assistant",)
    train_reasoning: bool = True
    train_tool_calls: bool = True
    max_length: int | None = 1024
    overlong: str = "drop"
    packing: bool = False
    packing_strategy: str = "bfd"
    bad_rows: str = "error"
    text_field: str | None = None
    held_out: str | None = None
    eval_share: float | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    cache: bool = True
    workers: int = 1
    share_prefixes: bool | str = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRecipe:
    """A LoRA adapter; `lora: null` trains all weights instead. See `honed.model.adapters.adapters.lora_config`.

    Attributes:
        target_modules: layer names, or "all-linear"; null for none.
        target_parameters: weights outside linear layers, such as experts.gate_up_proj.
        rank_pattern, alpha_pattern: layer -> its own r or alpha.
        init: peft's `init_lora_weights`, such as "pissa"; true for the default.
        modules_to_save: layers that are trained in full, such as lm_head.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] | None = "all-linear"
    target_parameters: tuple[str, ...] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_dora: bool = False
    use_rslora: bool = False
    init: bool | str = True
    modules_to_save: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesRecipe:
    """Questions that the model answers before and after training.

    Attributes:
        prompts: JSONL of `{"prompt": ...}` rows, or "starter"; None for no samples.
        max_new_tokens: maximum length of an answer.
        form: regular expression that a whole answer must match to have the wanted form.
        form_says: the same in words.
    """

    prompts: str | None = None
    max_new_tokens: int = 96
    form: str | None = None
    form_says: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole training run.

    Attributes:
        model: name, folder or Hub id.
        dtype: dtype of its weights, such as "bfloat16"; null chooses one for the device and the kind of training.
        quantization: "nf4", "fp4" or "int8" quantises the model, to train an adapter on it; "nf4+experts" quantises its
            stacked experts, too; see `honed.model.load.quantize`.
        data, lora, samples: see the classes.
        train: arguments of `honed.SFTConfig` (and so of transformers' TrainingArguments), by name.
        engine: "trainer" trains with `honed.SFTTrainer`, "plain" with the loop of `honed.train.loop.loop`.
        output: folder of the run.
    """

    model: str = "smollm2-135m-instruct"
    dtype: str | None = None
    quantization: str | None = None
    data: DataRecipe = field(default_factory=DataRecipe)
    lora: LoraRecipe | None = field(default_factory=LoraRecipe)
    samples: SamplesRecipe = field(default_factory=SamplesRecipe)
    train: Mapping[str, Any] = field(default_factory=lambda: dict(TRAIN_DEFAULTS))
    engine: str = "trainer"
    output: str = "runs/latest"


SECTIONS: dict[str, type] = {"data": DataRecipe, "lora": LoraRecipe, "samples": SamplesRecipe}


def load_recipe(path: str | Path | None = None, changes: Iterable[str] = ()) -> Recipe:
    """Reads a recipe and applies `key=value` changes.

    Args:
        path: a YAML file; None for the defaults.
        changes: such as "learning_rate=1e-4", "data.max_length=2048", "lora=null". A key without a section is looked
            up in the recipe itself, then in `data`, `lora` and `samples`; otherwise it belongs to `train`.

    Raises:
        RecipeError: the file cannot be read, or a key or a value is invalid.
    """
    tree = _read_yaml(Path(path)) if path is not None else {}
    for change in changes:
        _apply(tree, change)
    return recipe_from(tree)


def recipe_from(tree: Mapping[str, Any]) -> Recipe:
    """A recipe from plain dicts, as parsed from YAML.

    Raises:
        RecipeError: an unknown key or a value of the wrong kind.
    """
    tree = dict(tree)
    _refuse_unknown(tree, _names(Recipe), "")
    data = tree.get("data")
    if isinstance(data, (str, list, tuple)):
        tree["data"] = {"files": data}
    for section, kind in SECTIONS.items():
        if section in tree and not (tree[section] is None and section == "lora"):
            tree[section] = _build(kind, tree[section], f"{section}.")
    train = tree.get("train") or {}
    if not isinstance(train, Mapping):
        raise RecipeError(f"train must hold key: value lines, found {train!r}.", fix="indent the keys below `train:`")
    _refuse_other_names(train)
    tree["train"] = {**TRAIN_DEFAULTS, **train}
    return _build(Recipe, tree, "")


def strict_yaml(text: str) -> Any:
    """Parses YAML as PyYAML's `safe_load` does (so `no` is false), except that a key given twice is an error.

    Raises:
        yaml.YAMLError: it is not valid YAML, or a mapping has a key twice.
    """
    return yaml.load(text, _StrictLoader)


def as_yaml(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.dump(_plain(dataclasses.asdict(recipe)), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def suggest(key: str, known: Iterable[str]) -> str:
    """'Did you mean ...?' for an unknown key with a close match, else a list of the known keys."""
    known = sorted(known)
    called = (key_called(key) or "").rpartition(".")[-1]
    if called in known:
        return f"did you mean {called!r}?"
    close = difflib.get_close_matches(key.rsplit(".", maxsplit=1)[-1], known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _meant(key: str) -> str | None:
    """Returns the key that a wrong one stands for: another trainer's name for it, or one of another section."""
    name = key.rsplit(".", maxsplit=1)[-1]
    holders = [f"{section}.{name}" for section, kind in SECTIONS.items() if name in _names(kind)]
    holders += [f"train.{name}"] if name in TRAIN_DEFAULTS else []
    return key_called(name) or (holders[0] if holders else None)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}", fix="name a YAML file") from None
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}", fix="fix that line") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} holds no recipe.", fix="write lines such as `model: ...` and `data: ...`")
    return tree


def _apply(tree: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise RecipeError(f"{change!r} is not key=value.", fix="write, for example, learning_rate=1e-4")
    try:
        value = yaml.load(text, _Loader) if text else None
    except yaml.YAMLError:
        value = text
    if isinstance(value, str) and text[0] not in "'\"":
        value = text  # YAML would cut it at " #" and fold its whitespace
    *sections, name = _path_of(key).split(".")
    for section in sections:
        below = tree.get(section)
        if section == "data" and isinstance(below, (str, list)):  # `data: FILE`, then an option of it
            below = {"files": below}
        if below is not None and not isinstance(below, Mapping):
            raise RecipeError(f"{key} cannot be set: {section} is {below!r}.", fix=f"set {section} to key: value lines")
        tree[section] = below = dict(below or {})
        tree = below
    tree[name] = value


def _path_of(key: str) -> str:
    if "." in key or key in _names(Recipe):
        first = key.split(".", maxsplit=1)[0]
        if first not in _names(Recipe):
            meant = _meant(key)
            fix = f"did you mean {meant!r}?" if meant else suggest(first, _names(Recipe))
            raise RecipeError(f"Unknown key {key!r}.", fix=fix)
        return key
    holders = [section for section, kind in SECTIONS.items() if key in _names(kind)]
    return f"{holders[0]}.{key}" if holders else f"train.{key}"


def _build(kind: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        where = prefix.rstrip(".") or "the recipe"
        raise RecipeError(f"{where} must hold key: value lines, found {values!r}.", fix="see `honed train --help`")
    _refuse_unknown(values, _names(kind), prefix)
    hints = get_type_hints(kind)
    return kind(**{key: _fit(value, hints[key], f"{prefix}{key}") for key, value in values.items()})


def _refuse_unknown(values: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    for key in values:
        if key not in known:
            meant = _meant(str(key))
            if meant and "." not in meant and meant not in _names(Recipe):
                meant = f"train.{meant}"
            fix = f"did you mean {meant!r}?" if meant else suggest(str(key), known)
            raise RecipeError(f"Unknown key {prefix}{key}.", fix=fix)


def _refuse_other_names(train: Mapping[str, Any]) -> None:
    """Refuses what other trainers call these keys, at once: all keys are known only when transformers is loaded."""
    for key in train:
        if meant := key_called(str(key)):
            raise RecipeError(f"Unknown key {key}.", fix=f"did you mean {meant!r}?")


def _fit(value: Any, kind: Any, key: str) -> Any:
    """The value converted to the field's type without loss; otherwise an error that names the expected type."""
    choices = get_args(kind) if get_origin(kind) is not tuple and not _is_mapping(kind) else ()
    for choice in choices or (kind,):
        fitted = _fit_one(value, choice)
        if fitted is not _MISFIT:
            return fitted
    raise RecipeError(f"{key} is {value!r}.", fix=f"it takes {in_words(choices or (kind,))}")


_MISFIT = object()


def _fit_one(value: Any, kind: Any) -> Any:
    if kind is type(None):
        return None if value is None else _MISFIT
    if get_origin(kind) is tuple:
        [item_kind, _] = get_args(kind)
        items = [value] if isinstance(value, str) else value
        ok = isinstance(items, (list, tuple)) and items and all(_fit_one(i, item_kind) is not _MISFIT for i in items)
        return tuple(items) if ok else _MISFIT
    if _is_mapping(kind):
        return value if isinstance(value, Mapping) else _MISFIT
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, bool):
        return _MISFIT
    return value if isinstance(value, kind) else _MISFIT


def _is_mapping(kind: Any) -> bool:
    return isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping)


def in_words(kinds: Sequence[Any]) -> str:
    """Returns the types that a key takes, as a user would write their values."""
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }
    for kind in kinds:
        if get_origin(kind) is tuple:
            words[kind] = "a list of texts" if get_args(kind)[0] is str else "a list of key: value lines"
    return " or ".join(words.get(kind, "key: value lines") for kind in kinds)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _names(kind: type) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]
