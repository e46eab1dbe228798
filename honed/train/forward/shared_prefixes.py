"""Decides whether shared prefixes are computed once: if requested, and if a trial on this model succeeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from honed.data.batch.collate import FlatCollator
from honed.data.batch.prefix import MIN_SHARED
from honed.data.batch.table import PackedRow
from honed.errors import ModelError, RecipeError
from honed.loss.router import aux_loss_coefficient
from honed.model.load.vocabulary import known_tokens
from honed.train.forward.seams import Seams, are_same, base_model, on_device_of, opened, token_scores
from honed.train.options.config import SFTConfig


def decide(args: SFTConfig, model: nn.Module, seams: Seams) -> tuple[bool, list[str]]:
    """Whether prefixes are shared; with "auto", a note names the obstacle, if there is one.

    Raises:
        RecipeError: `share_prefixes` is neither a bool nor "auto".
        ModelError: it is True, and the model or another option prevents it.
    """
    wanted = args.share_prefixes
    if wanted not in (True, False, "auto"):
        raise RecipeError(f"share_prefixes is {wanted!r}.", fix='choose one of: true, false, "auto"')
    if not wanted:
        return False, []
    obstacle: str | None = "NEFTune's noise would be the same for all documents that share a token"
    if not args.neftune_noise_alpha:
        obstacle = find_obstacle(model, seams, balance=args.router_aux_loss_coef)
    if obstacle is None:
        return True, []
    if wanted is True:
        raise ModelError(f"share_prefixes=True, but {obstacle}", fix="set share_prefixes=False, or remove the cause")
    return False, [f"prefixes are not shared: {obstacle}"]


def find_obstacle(model: nn.Module, seams: Seams, *, balance: float | None = None) -> str | None:
    """Returns why this model cannot compute a shared prefix once; None if a trial on two short documents succeeds.

    Args:
        balance: `router_aux_loss_coef`; None for the model's default.
    """
    config = base_model(model).config
    if not seams.flat:
        return "documents cannot share a row in this model"
    if getattr(config, "attention_dropout", 0.0) or any(m.p for m in model.modules() if isinstance(m, nn.Dropout)):
        return "the model has dropout, which would be the same for all documents that share a token"
    if aux_loss_coefficient(config.get_text_config(), balance):
        return "the router's auxiliary loss would count shared tokens once"
    try:
        apart, together = (_probe(model, share=share) for share in (False, True))
    except (TypeError, ValueError, RuntimeError) as error:
        return f"the model does not take them: {error}"
    if are_same([together], [apart], base_model(model).dtype):
        return None
    return "documents that share a prefix get different scores than on their own"


@torch.no_grad()
def _probe(model: nn.Module, *, share: bool) -> torch.Tensor:
    """Returns the scores of two documents with a common prefix, as training would compute them."""
    vocabulary = known_tokens(base_model(model))
    prefix = np.random.default_rng(0).integers(vocabulary, size=MIN_SHARED + 1)
    rows = [_row(np.concatenate([prefix, np.arange(n, n + 4) % vocabulary])) for n in (1, 2)]
    batch, was_training = on_device_of(model, FlatCollator(share_prefixes=share)(rows)), model.training
    model.eval()
    try:
        with opened(model, Seams(flat=True)):
            return token_scores(model, batch, None)[0].nll_N
    finally:
        model.train(was_training)


def _row(ids: np.ndarray[Any, Any]) -> PackedRow:
    weights = np.ones(len(ids), dtype=np.float32)
    weights[: MIN_SHARED + 1] = 0.0  # compare only what follows the prefix
    return PackedRow(input_ids=ids, weights=weights, lengths=(len(ids),))
