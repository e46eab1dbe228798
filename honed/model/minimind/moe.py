"""Mixture of experts: a router, experts that process all their tokens at once, and the load-balancing loss.

Every token goes through the shared experts and through K of the routed ones. Tokens are sorted by expert, so that each
expert runs one GEMM per weight over a slice, whatever the number of tokens:

    tokens      t0 t0 t1 t1 t2 t2            K = 2 slots for each token
    expert       2  0  0  1  2  0
    sorted      t0 t1 t2 | t1 | t0 t2        slices of experts 0, 1 and 2

Shapes: B rows, L tokens per row, N = B * L, D hidden size, E routed experts, K experts per token, S = N * K slots,
Q sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class SwiGLU(nn.Module):
    """Gated feed-forward layer, down(silu(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Chooses the K experts with the highest softmax probability.

    Its weight is not in an `nn.Linear`, so adapters and quantisation of "all linear layers" leave it alone.

    Args:
        normalise: divide the chosen probabilities by their sum.
    """

    def __init__(self, hidden_size: int, experts: int, *, top_k: int, normalise: bool) -> None:
        super().__init__()
        self.top_k, self.normalise = top_k, normalise
        self.weight = nn.Parameter(torch.empty(experts, hidden_size))

    def forward(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (N, E), the chosen experts int64 (N, K), and their weights (N, K) in the input's dtype."""
        logits_NE = F.linear(x_ND, self.weight)
        share_NK, expert_NK = probabilities(logits_NE).topk(self.top_k, dim=-1)
        if self.normalise:
            share_NK = share_NK / share_NK.sum(dim=-1, keepdim=True)
        return logits_NE, expert_NK, share_NK.to(x_ND.dtype)


class MixtureOfExperts(nn.Module):
    """Shared experts plus the K of E routed experts that the router chooses for each token.

    Experts are separate modules, not one stacked tensor, so that peft and quantisation find their linear layers and
    weight names are those of MiniMind.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        experts: int,
        shared_experts: int,
        top_k: int,
        normalise: bool,
    ) -> None:
        super().__init__()
        self.gate = Router(hidden_size, experts, top_k=top_k, normalise=normalise)
        self.experts = nn.ModuleList(SwiGLU(hidden_size, intermediate_size) for _ in range(experts))
        self.shared_experts = nn.ModuleList(SwiGLU(hidden_size, intermediate_size) for _ in range(shared_experts))

    def forward(self, x_BLD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Output (B, L, D) and the router logits (N, E)."""
        x_ND = x_BLD.reshape(-1, x_BLD.shape[-1])
        logits_NE, expert_NK, share_NK = self.gate(x_ND)
        y_ND = dispatch(x_ND, expert_NK, share_NK, self.experts)
        for expert in self.shared_experts:
            y_ND = y_ND + expert(x_ND)
        return y_ND.view_as(x_BLD), logits_NE


def dispatch(
    x_ND: torch.Tensor, expert_NK: torch.Tensor, share_NK: torch.Tensor, experts: Sequence[nn.Module] | nn.ModuleList
) -> torch.Tensor:
    """Sum over each token's experts of share * expert(token), shape (N, D).

    With gradients enabled, an expert without tokens runs on an empty slice: data-parallel wrappers wait for its
    gradients.

    Args:
        expert_NK: int64, the experts of each token.
        share_NK: the experts' weights.
    """
    slots_S = expert_NK.reshape(-1)
    order_S = slots_S.argsort(stable=True)
    sizes = slots_S.bincount(minlength=len(experts)).tolist()
    slices = x_ND.index_select(0, order_S // expert_NK.shape[1]).split(sizes)
    runs_empty = torch.is_grad_enabled()
    outputs = [
        expert(tokens) if len(tokens) or runs_empty else tokens for expert, tokens in zip(experts, slices, strict=True)
    ]
    sorted_SD = torch.cat(outputs)
    y_SD = torch.empty_like(sorted_SD).index_copy(0, order_S, sorted_SD)  # back to the original order
    return torch.bmm(share_NK[:, None], y_SD.view(*expert_NK.shape, -1))[:, 0]


def balance_loss(logits_NE: torch.Tensor, sequence_N: torch.Tensor, *, sequences: int, top_k: int) -> torch.Tensor:
    """Expert-level balance loss of DeepSeekMoE (arXiv:2401.06066, eq. 12-14), a mean over sequences; 1 when balanced.

    For a sequence of T tokens it is sum_e f_e P_e, where f_e = E / (K T) * (number of its tokens that chose expert e)
    and P_e is the mean probability of e. The gradient flows only through P.

    Args:
        logits_NE: router logits of one layer.
        sequence_N: int64, the sequence of each token; -1 for padding, which is ignored.
        sequences: the number of sequences.
        top_k: K.
    """
    kept_N = sequence_N >= 0
    logits_NE, sequence_N = logits_NE[kept_N], sequence_N[kept_N]
    probability_NE = probabilities(logits_NE)
    chosen_NE = torch.zeros_like(probability_NE).scatter(1, probability_NE.topk(top_k, dim=-1).indices, 1.0)
    length_Q1 = sequence_N.bincount(minlength=sequences)[:, None].clamp_min(1)
    zero_QE = probability_NE.new_zeros(sequences, logits_NE.shape[1])
    f_QE = zero_QE.index_add(0, sequence_N, chosen_NE) * (logits_NE.shape[1] / top_k) / length_Q1
    p_QE = zero_QE.index_add(0, sequence_N, probability_NE) / length_Q1
    return (f_QE * p_QE).sum(-1).mean()


def sequences_of(
    shape: torch.Size, attention_mask: torch.Tensor | None, bounds: torch.Tensor | None, device: torch.device
) -> tuple[torch.Tensor, int]:
    """The sequence of each token, int64 (N,), -1 for padding, and the number of sequences.

    Args:
        shape: (B, L), the shape of the input ids.
        attention_mask: (B, L), 0 at padding.
        bounds: boundaries of the documents in a flat row, int (Q + 1,).
    """
    rows, length = shape
    if bounds is not None and rows == 1:
        tokens = torch.arange(length, device=device)
        return torch.bucketize(tokens, bounds[1:].to(device), right=True), len(bounds) - 1
    sequence_BL = torch.arange(rows, device=device)[:, None].expand(rows, length)
    if attention_mask is not None and attention_mask.shape == shape:
        sequence_BL = sequence_BL.masked_fill(attention_mask == 0, -1)
    return sequence_BL.reshape(-1), rows


def probabilities(logits_NE: torch.Tensor) -> torch.Tensor:
    """Softmax over the experts, in at least float32."""
    return logits_NE.softmax(dim=-1, dtype=torch.promote_types(logits_NE.dtype, torch.float32))
