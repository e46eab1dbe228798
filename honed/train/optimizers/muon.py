"""Muon for the hidden layers' matrices and AdamW for the rest, as one optimizer (`optim="muon"`).

Muon orthogonalises the momentum of a matrix (Jordan et al. 2024, kellerjordan.github.io/posts/muon). Its updates are
scaled by 0.2 sqrt(max(rows, columns)) to the size of AdamW's, so that both share learning rate and weight decay (Liu et
al., arXiv:2502.16982).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from honed.errors import RecipeError, RunError
from honed.model.layers import hidden_matrices
from honed.recipe import suggest

OPTIONS: dict[str, Callable[[str], Any]] = {  # in `optim_args`, for Muon's matrices only
    "lr": float,
    "momentum": float,
    "nesterov": lambda text: {"true": True, "false": False}[text.lower()],
    "ns_steps": int,
    "adjust_lr_fn": {"match_rms_adamw": "match_rms_adamw", "original": "original"}.__getitem__,
}


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on groups marked `muon`, `torch.optim.AdamW` on the others, with exactly their steps."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self._muon = torch.optim.Muon([{"params": []}])
        self._adamw = torch.optim.AdamW([{"params": []}], fused=True)
        defaults = {True: self._muon.defaults, False: self._adamw.defaults}
        super().__init__([{**defaults[group["muon"]], **group} for group in groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kind in (self._muon, self._adamw):  # both share this optimizer's state and groups
            kind.state = self.state
            kind.param_groups = [group for group in self.param_groups if group["muon"] is (kind is self._muon)]
            kind.step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a state; raises RunError if it belongs to another optimizer or to other weights."""
        there, here = (
            [group.get("muon") for group in groups] for groups in (state_dict["param_groups"], self.param_groups)
        )
        if there != here:
            raise RunError(
                "The checkpoint's optimizer is not Muon with AdamW over the same kinds of weights.",
                fix="set optim and the adapter as they were, or start over",
            )
        super().load_state_dict(dict(state_dict))


def make_muon(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    options: Mapping[str, Any] | None = None,
) -> MuonWithAdamW:
    """Creates the optimizer for all trained parameters of the model.

    Args:
        lr, weight_decay: for all weights, but biases and norms (vectors) do not decay.
        betas, eps: AdamW's.
        options: see `muon_options`.

    Raises:
        RecipeError: no matrix is trained, or one is sharded over several devices.
    """
    matrices, others = split(model)
    adamw = {"lr": lr, "betas": betas, "eps": eps, "muon": False}
    muon = {"lr": lr, "adjust_lr_fn": "match_rms_adamw", **(options or {}), "muon": True}
    groups = [
        {"params": [p for p in others if p.ndim >= 2], **adamw, "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim < 2], **adamw, "weight_decay": 0.0},
        {"params": matrices, **muon, "weight_decay": weight_decay},
    ]
    return MuonWithAdamW([group for group in groups if group["params"]])


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Divides the trained weights into Muon's (`hidden_matrices`) and AdamW's.

    Raises:
        RecipeError: there is no matrix for Muon, or one is sharded.
    """
    matrices = hidden_matrices(model)
    if not matrices:
        raise RecipeError(
            "optim='muon' needs matrices of hidden layers to train, and there are none.",
            fix="set optim='adamw_torch_fused'",
        )
    for name, p in matrices.items():
        if hasattr(p, "full_tensor"):  # a DTensor
            raise RecipeError(
                f"optim='muon' needs whole matrices, but {name} is split over several devices (FSDP2, tp_size).",
                fix="train with DDP, or set optim='adamw_torch_fused'",
            )
    own = set(matrices.values())
    return list(matrices.values()), [p for p in model.parameters() if p.requires_grad and p not in own]


def note_on_muon(model: nn.Module) -> str:
    """Returns a note on how many parameters each of the two trains."""
    matrices, others = split(model)
    own, rest = (sum(p.numel() for p in weights) for weights in (matrices, others))
    stacked = sum(p.numel() for p in others if p.ndim == 3)
    experts = f" ({stacked:,} of them in three-dimensional weights, as experts have them)" if stacked else ""
    return f"optim='muon': Muon trains {own:,} numbers in matrices, AdamW the other {rest:,}{experts}."


def muon_options(text: str | None) -> dict[str, Any]:
    """Parses Muon's options in `optim_args`, such as "momentum=0.9,ns_steps=6"; `lr` applies to Muon only.

    Raises:
        RecipeError: an unknown option or an invalid value.
    """
    found = {}
    for part in text.replace(" ", "").split(",") if text else ():
        name, _, value = part.partition("=")
        if name not in OPTIONS:
            raise RecipeError(f"optim='muon' has no option {name!r} (optim_args).", fix=suggest(name, OPTIONS))
        try:
            found[name] = OPTIONS[name](value)
        except (ValueError, KeyError):
            raise RecipeError(
                f"{value!r} is not a valid {name} (optim_args).", fix="write optim_args='momentum=0.95,ns_steps=5'"
            ) from None
    return found
