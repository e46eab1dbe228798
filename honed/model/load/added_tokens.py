"""Tokens that a run's options request: new ones in the vocabulary, with their embeddings, and special tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from honed.errors import ModelError, RecipeError
from honed.model.load.chat_tokens import grow, new_token_rows
from honed.quantities import counted

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def with_tokens(tokenizer: Any, *, roles: Mapping[str, str | None], added: Sequence[str] = ()) -> Any:
    """Returns the tokenizer if it already has all these tokens and roles, else a copy that does.

    Args:
        roles: names in `ROLES` -> token; None keeps the tokenizer's.
        added: tokens that the vocabulary may lack. They are not special: text that spells one is encoded as this token.

    Raises:
        RecipeError: a role's token is not in the vocabulary, or cannot replace the old one before texts; an added
            token is empty or listed twice.
    """
    if len(set(added)) < len(added) or not all(isinstance(token, str) and token.strip() for token in added):
        raise RecipeError(f"add_tokens is {list(added)}.", fix="list each new token once, none of them empty")
    new = [token for token in added if token not in tokenizer.get_vocab()]
    wanted = {role: token for role, token in roles.items() if token is not None and token != getattr(tokenizer, role)}
    if not new and not wanted:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens([_token(text) for text in new])
    for role, token in wanted.items():
        if token not in changed.get_vocab():
            raise RecipeError(
                f"{role} is {token!r}, which is not in the tokenizer's vocabulary.",
                fix=f"name one of its tokens, or add it, too: add_tokens=[{token!r}]",
            )
        setattr(changed, role, token)
    _refuse_another_start(tokenizer, changed)
    return changed


def with_rows(model: Any, tokenizer: Any, added: Sequence[str]) -> list[str]:
    """Adds rows for the added tokens to the model's embedding and head, in place; returns notes.

    Rows that do not exist yet or look untrained become the mean of the rows before them (Hewitt 2021, see
    `clone_chat_template`); trained ones are kept. A model with enough rows keeps its shape.

    Raises:
        ModelError: the model already has an adapter, so that no row can be added.
    """
    if not added:
        return []
    ids = sorted(tokenizer.convert_tokens_to_ids(list(added)))
    rows = model.get_input_embeddings().weight.shape[0]
    lacking = [i for i in ids if i >= rows]
    if hasattr(model, "get_base_model"):
        if lacking:
            raise ModelError("The model has an adapter already.", fix="add tokens before the adapter")
        return []
    new = sorted({*lacking, *new_token_rows(model, ids)})
    behind = [i for i in new if i >= tokenizer.vocab_size]  # the original vocabulary's rows come first
    grow(model, max(rows, ids[-1] + 1), new, trained=behind[0] if behind else rows)
    kept = len(ids) - len(new)
    known = f"; {kept} more had a trained row and keep it" if kept else ""
    larger = f", and the embedding has {ids[-1] + 1:,} rows instead of {rows:,}" if lacking else ""
    return [f"add_tokens: {counted(len(new), 'row')} made as the mean of the others{larger}{known}"]


def rows_in_adapter(folder: str, model: Any) -> int:
    """Returns the number of embedding rows in an adapter's folder; 0 if it has no embedding."""
    from safetensors import safe_open

    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        return 0
    names = {id(module): name for name, module in model.named_modules()}
    start = f"base_model.model.{names[id(model.get_input_embeddings())]}."
    with safe_open(file, framework="pt") as weights:
        whole = [key for key in weights.keys() if key.startswith(start) and key.endswith(".weight")]  # noqa: SIM118
        return max((int(weights.get_slice(key).get_shape()[0]) for key in whole if "lora_" not in key), default=0)


def _token(text: str) -> Any:
    from tokenizers import AddedToken

    return AddedToken(text, normalized=False, special=False)


def _refuse_another_start(before: Any, after: Any) -> None:
    """Refuses a BOS without effect: a fast tokenizer puts its old BOS before texts, whatever its attribute says."""
    old, new = before.bos_token_id, after.bos_token_id
    if old is None or old == new:
        return
    if after("a")["input_ids"][:1] == [old]:
        raise RecipeError(
            f"bos_token is {after.bos_token!r}, but the tokenizer puts {before.bos_token!r} before each text.",
            fix="leave bos_token out, or save a tokenizer whose post-processor has the other",
        )
