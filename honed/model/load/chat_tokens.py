"""Chat tokens for a model without them: a template, its tokens and their embeddings; detection of untrained rows.

Shapes: V vocabulary, D hidden size, N token ids in question.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch

from honed.errors import ModelError, TemplateError
from honed.model.load.load import load_tokenizer
from honed.model.load.vocabulary import agree_on_special_tokens

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# As a fraction of the usual distance between rows; rows initialised to the mean, or left at zero, are about 0 apart.
NEAR = 0.1
ROWS_AT_A_TIME = 1 << 14


def clone_chat_template(
    model: Any, tokenizer: Any, source_tokenizer_path: str, resize_to_multiple_of: int | None = 64
) -> tuple[Any, Any, list[int]]:
    """Adopts the chat template and tokens of another tokenizer, like TRL's function of this name.

    The source's added tokens that this tokenizer lacks are added, and the source's EOS becomes EOS. The embedding grows
    (never shrinks) to a multiple of `resize_to_multiple_of`; the remaining rows get tokens `<extra_id_N>`. New rows are
    the mean of the old ones, so that the tokens are as likely as an average one (Hewitt 2021), and `new_token_rows`
    finds them.

    Args:
        model: a transformers model; changed in place, as in TRL (rows, config, generation config).
        tokenizer: not changed.
        source_tokenizer_path: folder or Hub id of a tokenizer with a chat template.
        resize_to_multiple_of: None for no rounding.

    Returns:
        The model, the new tokenizer, and the ids of the added tokens. An adapter must train these rows, through
        `peft_config.trainable_token_indices` or through `SFTTrainer`, which looks for untrained rows.

    Raises:
        TemplateError: the source has no chat template.
        ModelError: the model already has an adapter, or there is no such tokenizer.
    """
    source = load_tokenizer(source_tokenizer_path)
    if source.chat_template is None:
        raise TemplateError(f"The tokenizer {source_tokenizer_path} has no chat template.", fix="name another one")
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = source.get_chat_template()
    vocabulary = changed.get_vocab()
    lacking = [token for token in source.added_tokens_decoder.values() if token.content not in vocabulary]
    changed.add_tokens(lacking)
    changed.eos_token = source.eos_token if source.eos_token is not None else changed.eos_token
    if changed.pad_token is None and source.pad_token in changed.get_vocab():
        changed.pad_token = source.pad_token
    n_rows = _rounded(max(_n_ids(changed), _n_rows(model)), resize_to_multiple_of)
    added = [token.content for token in lacking] + _fill(changed, n_rows)
    ids = changed.convert_tokens_to_ids(added)
    grow(model, n_rows, ids, trained=_n_ids(tokenizer))
    agree_on_special_tokens(model, changed)
    return model, changed, ids


def setup_chat_format(
    model: Any, tokenizer: Any, format: str = "chatml", resize_to_multiple_of: int | None = None
) -> tuple[Any, Any]:
    """Adds ChatML tokens and template, like TRL's function of this name before `clone_chat_template`.

    `<|im_start|>` becomes BOS and `<|im_end|>` EOS (and the pad token, if there is none); for new rows see
    `clone_chat_template`.

    Args:
        model: changed in place.
        tokenizer: not changed.
        format: only "chatml".
        resize_to_multiple_of: the number of rows is rounded up to a multiple of this.

    Returns:
        The model and the new tokenizer.

    Raises:
        TemplateError: the tokenizer already has a chat template, or the format is unknown.
        ModelError: the model already has an adapter.
    """
    if format != "chatml":
        raise TemplateError(f"The chat format {format!r} is not known.", fix='set format="chatml"')
    if tokenizer.chat_template is not None:
        raise TemplateError(
            "The tokenizer has a chat template already.", fix="set tokenizer.chat_template = None to replace it"
        )
    changed = copy.deepcopy(tokenizer)
    before = set(changed.get_vocab())
    names = ["<|im_start|>", "<|im_end|>"]
    changed.add_special_tokens({"bos_token": names[0], "eos_token": names[1]})
    changed.pad_token = changed.pad_token if changed.pad_token is not None else names[1]
    changed.chat_template = CHATML
    n_rows = _rounded(max(_n_ids(changed), _n_rows(model)), resize_to_multiple_of)
    added = [name for name in names if name not in before]
    grow(model, n_rows, changed.convert_tokens_to_ids(added), trained=_n_ids(tokenizer))
    agree_on_special_tokens(model, changed)
    return model, changed


def template_tokens(tokenizer: Any) -> list[int]:
    """Returns the sorted ids of EOS and the added tokens (mostly control tokens) in a chat with one turn."""
    added = set(tokenizer.added_tokens_decoder)
    used = {tokenizer.eos_token_id} - {None}
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    if template is not None:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text = tokenizer.apply_chat_template(chat, tokenize=False)
        except Exception:  # templates may raise anything, for example for content that must be a list
            text = template
        used |= added & set(tokenizer(text, add_special_tokens=True)["input_ids"])
    return sorted(used)


@torch.no_grad()
def new_token_rows(model: Any, ids: Iterable[int]) -> list[int]:
    """Returns those of `ids` whose row in the embedding or in an untied LM head is untrained; sorted.

    A row counts as untrained if it is nearly zero, nearly the mean of all rows (as after `clone_chat_template` and
    transformers' resizing), or nearly equal to another row (as in Land & Bartolo, arXiv:2405.05417). Random rows cannot
    be distinguished from trained ones: pass their ids to the adapter yourself.

    Args:
        model: a transformers model; rows in other than floating-point dtypes count as trained.
        ids: token ids; each costs one product with the matrix.
    """
    asked = sorted(set(ids))
    found: set[int] = set()
    for weight_VD in _matrices(model):
        known = [i for i in asked if i < weight_VD.shape[0]]
        if known and weight_VD.is_floating_point() and weight_VD.device.type != "meta":
            untrained_N = _untrained(weight_VD, torch.tensor(known, device=weight_VD.device))
            found |= {i for i, untrained in zip(known, untrained_N.tolist(), strict=True) if untrained}
    return sorted(found)


def _untrained(weight_VD: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """Whether each row is untrained, bool (N,). Distances are computed in float32, some rows at a time."""
    rows_ND = weight_VD[ids_N].float()
    mean_D = weight_VD.mean(0, dtype=torch.float32)
    some_SD = weight_VD[:: max(1, len(weight_VD) // 4096)].float()
    usual = (some_SD - mean_D).norm(dim=-1).median()
    untrained_N = (rows_ND - mean_D).norm(dim=-1) < NEAR * usual
    untrained_N |= rows_ND.norm(dim=-1) < NEAR * some_SD.norm(dim=-1).median()
    for start in range(0, len(weight_VD), ROWS_AT_A_TIME):
        others_vD = weight_VD[start : start + ROWS_AT_A_TIME].float()
        distance_Nv = torch.cdist(rows_ND, others_vD)
        itself_Nv = ids_N[:, None] == torch.arange(start, start + len(others_vD), device=ids_N.device)
        untrained_N |= (distance_Nv.masked_fill(itself_Nv, torch.inf) < NEAR * usual).any(-1)
    return untrained_N


def _matrices(model: Any) -> list[torch.Tensor]:
    """Returns the embedding, and the head if it is not tied."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    return [embedding] if head is None or head.weight is embedding else [embedding, head.weight]


@torch.no_grad()
def grow(model: Any, n_rows: int, new_ids: list[int], *, trained: int) -> None:
    """Resizes embedding and head to `n_rows`; sets the rows of `new_ids` to the mean of the first `trained` rows."""
    if hasattr(model, "get_base_model"):
        raise ModelError("The model has an adapter already.", fix="add tokens before the adapter")
    trained = min(trained, _n_rows(model))
    if n_rows != _n_rows(model):
        model.resize_token_embeddings(n_rows, mean_resizing=False)
    head = model.get_output_embeddings()
    vectors = [*_matrices(model), *([head.bias] if getattr(head, "bias", None) is not None else [])]
    for values in vectors:
        if new_ids:
            values[new_ids] = values[:trained].mean(0, dtype=torch.float32).to(values.dtype)


def _fill(tokenizer: Any, n_rows: int) -> list[str]:
    """Adds `<extra_id_N>` tokens until every row has a token; returns their texts."""
    fillers: list[str] = []
    number = 0
    vocabulary = tokenizer.get_vocab()  # read once: a large one takes a tenth of a second
    lacking = n_rows - _n_ids(tokenizer)
    while len(fillers) < lacking:
        name = f"<extra_id_{number}>"
        number += 1
        if name not in vocabulary:
            fillers.append(name)
    tokenizer.add_tokens(fillers)
    return fillers


def _n_ids(tokenizer: Any) -> int:
    """Returns the number of rows that an embedding needs: the highest id plus 1."""
    return max(tokenizer.get_vocab().values()) + 1


def _n_rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _rounded(number: int, multiple: int | None) -> int:
    return number if not multiple else -(-number // multiple) * multiple
