"""Rotary position embeddings (Su et al., arXiv:2104.09864), and their extension by YaRN (arXiv:2309.00071).

Dimension i of a head is rotated together with dimension i + E/2, as in transformers; `pth` reorders the weights of
MiniMind 2, which rotates adjacent dimensions.

Shapes: B rows, H heads, T tokens, E head size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


def rope_frequencies(head_dim: int, parameters: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    """Angle per position of each pair of dimensions, float32 (E/2,) on the CPU, and the factor for cosine and sine.

    Args:
        head_dim: E, even.
        parameters: named as in transformers' `rope_parameters`: `rope_type` ("default" or "yarn"), `rope_theta`, and
            for YaRN `factor`, `original_max_position_embeddings` and optionally `beta_fast`, `beta_slow`,
            `attention_factor`.

    Raises:
        ValueError: any other rope_type.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = 1.0 / (parameters["rope_theta"] ** exponents)
    if parameters["rope_type"] == "default":
        return frequencies, 1.0
    if parameters["rope_type"] != "yarn":
        raise ValueError(f"rope_type is {parameters['rope_type']!r}: MiniMind knows 'default' and 'yarn'")
    share = yarn_share(head_dim, parameters)
    stretched = frequencies / parameters["factor"] * share + frequencies * (1 - share)
    given = parameters.get("attention_factor")
    return stretched, 0.1 * math.log(parameters["factor"]) + 1.0 if given is None else given


def yarn_share(head_dim: int, parameters: Mapping[str, Any]) -> torch.Tensor:
    """YaRN's interpolation weight of each pair, float32 (E/2,): 0 keeps its frequency, 1 divides it by the factor.

    Pairs that turn more than `beta_fast` times within the original length keep their frequency, those that turn less
    than `beta_slow` times are fully interpolated; in between the weight rises linearly.
    """
    original, theta = parameters["original_max_position_embeddings"], parameters["rope_theta"]

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_that_turns(parameters.get("beta_fast") or 32)), 0)
    last = min(math.ceil(pair_that_turns(parameters.get("beta_slow") or 1)), head_dim - 1)
    pairs = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    return ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)


def rope_tables(
    frequencies: torch.Tensor, positions_BT: torch.Tensor, *, factor: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of each position, (B, 1, T, E), in `dtype`; angles are computed in float32."""
    angles = positions_BT[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotate(x_BHTE: torch.Tensor, cos_B1TE: torch.Tensor, sin_B1TE: torch.Tensor) -> torch.Tensor:
    """Queries or keys, rotated by the angles of their positions."""
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_B1TE + torch.cat((-second, first), dim=-1) * sin_B1TE
