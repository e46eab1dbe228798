"""axolotl's datasets: `datasets`, `test_datasets` and `pretraining_dataset`, and how their rows become tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from honed.cli.new.sources import ONE_OF_ALL, Origin, hub_id, named, put_held_out, put_origins, talk_columns
from honed.cli.new.translate import Draft, Line, Values, as_number

NAME = "axolotl"
READERS = ("json", "jsonl", "csv", "parquet", "arrow", "text")  # `datasets`' names for file types, instead of a path
TALKS = ("chat_template", "chat_template.default", "sharegpt")
TEXTS = ("completion", "pretrain")
# What `type: alpaca` writes. The row's `input` is read as the system message, because a user message would have both.
ALPACA = (
    "{{ bos_token }}Below is an instruction that describes a task{% if messages[0].role == 'system' %}, paired with an "
    "input that provides further context{% endif %}. Write a response that appropriately completes the request.\n\n"
    "{% for message in messages %}{% if message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n"
    "{% if messages[0].role == 'system' %}### Input:\n{{ messages[0].content }}\n\n{% endif %}### Response:\n"
    "{% elif message.role == 'assistant' %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
ALPACA_COLUMNS = {"system": "input"}
STYLES = ("alpaca", "chatml", "metharme")  # templates that do not need a tokenizer's
SAYS_NOTHING = ("path", "type", "split", "name", "data_files", "ds_type", "trust_remote_code", "preprocess_shards",
                "text_column")  # fmt: skip
COLUMNS = {"field_messages", "message_property_mappings", "message_field_role", "message_field_content", "field_tools",
           "field_system", "field_thinking", "template_thinking_key", "message_field_training", "roles_to_train",
           "train_on_eos", "train_on_eot", "field"}  # fmt: skip
ROLES = {"human": "user", "gpt": "assistant"}


def data(draft: Draft, given: Values) -> None:
    """Translates the datasets, and how rows become tokens."""
    origins = _origins(draft, given, "datasets")
    stream = _origins(draft, given, "pretraining_dataset")
    if stream or given.get("streaming"):
        draft.put("data.streaming", True)
        sizes = ("streaming_multipack_buffer_size", "pretrain_multipack_buffer_size")
        draft.put("data.shuffle_buffer", next((given[key] for key in sizes if key in given), 10_000))
    else:
        for key in given.keys() & {"streaming", "streaming_multipack_buffer_size", "pretrain_multipack_buffer_size"}:
            draft.skip(key, "nothing is streamed")
    if origins or stream:
        put_origins(draft, [*origins, *stream], key="datasets" if origins else "pretraining_dataset")
    _evaluation(draft, given, origins)
    only_texts = {origin.format for origin in [*origins, *stream]} == {"text"}
    _length(draft, given, only_texts=only_texts, wraps=bool(stream))
    _masks(draft, given, only_texts=only_texts)
    _template(draft, given)


def _length(draft: Draft, given: Values, *, only_texts: bool, wraps: bool) -> None:
    length = given.get("sequence_len")
    draft.put("data.max_length", length or 512, "" if length else f"{NAME}'s default")
    policy = given.get("excess_length_strategy", "drop")
    if only_texts:
        draft.put("data.overlong", "split", "longer texts become several rows")
        if "excess_length_strategy" in given:
            draft.skip("excess_length_strategy", "longer texts become several rows")
    elif policy in ("drop", "truncate", "raise"):
        ours = {"raise": "error"}.get(policy, policy)
        draft.put("data.overlong", ours, "" if "excess_length_strategy" in given else f"{NAME}'s default")
    else:
        draft.refuse("excess_length_strategy", "no such value here", "write drop, truncate or raise")
    if given.get("sample_packing") or wraps:
        draft.put("data.packing", True)
    if wraps:
        draft.put("data.packing_strategy", "wrapped")
    if "eval_sample_packing" in given:
        draft.put("train.eval_packing", given["eval_sample_packing"])


def _masks(draft: Draft, given: Values, *, only_texts: bool) -> None:
    if given.get("train_on_inputs") or only_texts:
        draft.put("data.train_on", "all")
    else:
        draft.put("data.train_on", "assistant", "" if "train_on_inputs" in given else f"{NAME}'s default")
    trained: list[list[str]] = [
        entry["roles_to_train"] for entry in _entries(given.get("datasets")) if entry.get("roles_to_train")
    ]
    if any(roles != trained[0] for roles in trained):
        draft.refuse("datasets", "data.train_roles is one for all datasets, and these have several", ONE_OF_ALL)
    elif trained and trained[0] != ["assistant"]:
        draft.put("data.train_roles", [ROLES.get(role, role) for role in trained[0]])


def _template(draft: Draft, given: Values) -> None:
    style, jinja = given.get("chat_template"), given.get("chat_template_jinja")
    if draft.lines.get("data.format", None) == Line(key="data.format", value="alpaca"):
        draft.template = ALPACA
        for key in given.keys() & {"chat_template", "chat_template_jinja"}:
            draft.skip(key, "type alpaca has prompts of its own")
        return
    for entry in _entries(given.get("datasets")):
        if entry.get("chat_template") not in (None, style) or entry.get("chat_template_jinja") not in (None, jinja):
            draft.refuse("datasets", "a dataset has a chat template of its own", "set template for it in data.sources")
    if jinja is not None:
        if "\n" in str(jinja) or "{" in str(jinja):
            draft.refuse("chat_template_jinja", "a recipe names a file", "save the text as a file, and name it")
        draft.put("data.template", jinja if "{" not in str(jinja) else "auto")
    elif style in STYLES:
        draft.refuse("chat_template", "a prompt style that the tokenizer may not have",
                     "name a Jinja file with data.template")  # fmt: skip
    elif style is not None:
        draft.put("data.template", "auto", f"theirs is {style!r}; here it is the tokenizer's own")


def _evaluation(draft: Draft, given: Values, training: Sequence[Origin]) -> None:
    share = as_number(given.get("val_set_size", 0))
    held_out = _origins(draft, given, "test_datasets")
    if held_out and training:
        put_held_out(draft, held_out, training, key="test_datasets")
    if share >= 1:
        draft.refuse("val_set_size", "data.eval_share is a share of the rows", "write a share, such as 0.02")
    elif share:
        draft.put("data.eval_share", share)
    if not {"data.eval_share", "data.held_out"} & draft.lines.keys():
        for key in given.keys() & {"evals_per_epoch", "eval_steps", "eval_strategy", "evaluation_strategy"}:
            draft.skip(key, "nothing is held out")
        return
    strategy = given.get("eval_strategy", given.get("evaluation_strategy"))
    draft.put("train.eval_strategy", strategy or "no", "" if strategy else f"{NAME}'s default")
    put_often(draft, "eval", given.get("evals_per_epoch"), given.get("eval_steps"))


def put_often(draft: Draft, verb: str, times: Any, every: Any) -> None:
    """Writes when to save or evaluate: a number of times per epoch, or at an interval in steps."""
    epochs = draft.lines["train.num_train_epochs"].value if "train.num_train_epochs" in draft.lines else 1
    if every or times:
        draft.put(f"train.{verb}_strategy", "epoch" if times == 1 and not every else "steps")
    if every:
        draft.put(f"train.{verb}_steps", every)
    elif times and times != 1:
        draft.put(f"train.{verb}_steps", 1 / (times * epochs), f"{times} times an epoch: a share of all steps")


def _origins(draft: Draft, given: Values, key: str) -> list[Origin]:
    return [_origin(draft, entry, key) for entry in _entries(given.get(key))]


def _entries(value: Any) -> list[Mapping[str, Any]]:
    listed = value if isinstance(value, list) else [value] if value else []
    return [{"path": entry} if isinstance(entry, str) else entry for entry in listed]


def _origin(draft: Draft, entry: Mapping[str, Any], key: str) -> Origin:
    files = _files(draft, entry, key)
    kind = entry.get("type", "pretrain" if key == "pretraining_dataset" else None)
    set_keys = {name for name, value in entry.items() if value not in (None, False, [], {})}
    of_texts = {"field"}
    odd = sorted(set_keys - (of_texts if kind in TEXTS else COLUMNS - of_texts) - set(SAYS_NOTHING))
    if odd:
        draft.refuse(key, f"{entry.get('path')}: honed has no {', '.join(odd)}", "leave it out, or change the rows")
    if kind in TEXTS:
        return Origin(files=files, format="text", text_field=entry.get("field", entry.get("text_column")))
    if kind == "alpaca" and not set_keys & COLUMNS:
        return Origin(files=files, format="alpaca", columns=ALPACA_COLUMNS)
    if kind not in TALKS:
        shown = kind if isinstance(kind, str) else "of one's own" if kind else "missing"
        draft.refuse(
            key,
            f"{entry.get('path')}: type {shown} writes prompts in its own style; here the chat template does",
            "write rows of messages (type: chat_template), or of prompt and completion that hold the style",
        )
        return Origin(files=files)
    return Origin(files=files, columns=_columns(draft, entry, key))


def _columns(draft: Draft, entry: Mapping[str, Any], key: str) -> dict[str, str]:
    names = entry.get("message_property_mappings") or {}
    sharegpt = entry.get("type") == "sharegpt"
    role = names.get("role", entry.get("message_field_role", "from" if sharegpt else "role"))
    content = names.get("content", entry.get("message_field_content", "value" if sharegpt else "content"))
    others = [name for name, own in names.items() if name not in ("role", "content", "reasoning_content", own)]
    if others:
        draft.refuse(key, f"message_property_mappings has {', '.join(others)}", "map role and content, and no others")
    same = {"train_on_eos": "turn", "train_on_eot": "turn", "template_thinking_key": "reasoning_content"}
    for name, value in same.items():
        if entry.get(name) not in (None, value):
            draft.refuse(key, f"{name} is {entry[name]!r}; here it is {value}", "leave it out")
    talk = talk_columns(entry.get("field_messages") or ("conversations" if sharegpt else "messages"), role, content)
    own = {
        "tools": entry.get("field_tools"),
        "system": entry.get("field_system"),
        "train": entry.get("message_field_training"),
        "reasoning_content": names.get("reasoning_content", entry.get("field_thinking")),
    }
    return talk | named(own)


def _files(draft: Draft, entry: Mapping[str, Any], key: str) -> str | list[str]:
    path, files = str(entry.get("path", "")), entry.get("data_files")
    local = path in READERS or path.startswith((".", "/", "~")) or Path(path).suffix or Path(path).exists()
    if files is not None and path in READERS:
        return files
    if files is not None:
        draft.refuse(key, f"{path}: data_files of a dataset", "download them, and name the files")
    if not local:
        return hub_id(path, entry.get("name"), entry.get("split"))
    if entry.get("split") not in (None, "train"):
        draft.refuse(
            key, f"{path}: split {entry['split']!r} of a file", "put the rows into a file, or set cap in data.sources"
        )
    return path
