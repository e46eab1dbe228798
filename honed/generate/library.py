"""transformers' `generate` behind the same interface, for models and options that honed's engine does not support."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from honed.generate.request import Completion, Piece, Reason, Request, evaluating
from honed.generate.text import TextStream
from honed.model.load.vocabulary import known_tokens


class TransformersEngine:
    """Answers batches of requests with `model.generate`.

    Greedy requests share left-padded batches. Sampled ones are answered one by one, so that their seeds determine the
    result. An answer comes as one piece.

    Args:
        model: a model with `generate`; it stays in its mode (training or evaluation).
        tokenizer: for text, padding and stop strings.
        batch_size: rows at a time.
        options: further arguments of `generate`, which override those of the requests.
        shares: whether prompts may share a batch; see `shares_batches`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 16,
        options: Mapping[str, Any] | None = None,
        shares: bool = True,
    ) -> None:
        self._model, self._tokenizer, self._shares = model, tokenizer, shares
        self._batch_size, self._options = batch_size, dict(options or {})

    def run(self, requests: Iterable[Request], *, pieces: bool = False) -> Iterator[Piece]:
        """One piece per answer; a batch is answered when it is full."""
        numbered = enumerate(requests)
        while batch := list(islice(numbered, self._batch_size)):
            for alike in _alike(batch, self._shares):
                yield from self._answer(alike)

    def _answer(self, batch: Sequence[tuple[int, Request]]) -> Iterator[Piece]:
        first = batch[0][1]
        rows = self._generate([request.prompt_ids for _, request in batch], first)
        for place, ids in enumerate(rows):
            number, request = batch[place // first.answers]
            done = self._completion(ids, request)
            answer = request.first + place % first.answers
            yield Piece(request=number, answer=answer, text=done.text, done=done)

    @torch.no_grad()
    def _generate(self, prompts: Sequence[Sequence[int]], request: Request) -> list[list[int]]:
        """New ids, `request.answers` rows for each prompt, padded after the stop token."""
        ids_BL, mask_BL = left_padded(prompts, self._pad())
        device = self._model.device
        with evaluating(self._model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(request.seed + request.first)
            output_BL = self._model.generate(
                input_ids=ids_BL.to(device),
                attention_mask=mask_BL.to(device),
                **{**self._arguments(request), **self._options},
            )
        return [list(row) for row in output_BL[:, ids_BL.shape[1] :].tolist()]

    def _arguments(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        chosen: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            chosen = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p or None,
            }
        stops = {"stop_strings": list(request.stop_strings), "tokenizer": self._tokenizer}
        return {
            **chosen,
            **(stops if request.stop_strings else {}),
            "max_new_tokens": request.max_new_tokens,
            "repetition_penalty": sampling.repetition_penalty,
            "num_return_sequences": request.answers,
            "eos_token_id": sorted(request.stop_ids) or None,
            "pad_token_id": self._pad(),
        }

    def _completion(self, ids: list[int], request: Request) -> Completion:
        end = next((n for n, token in enumerate(ids) if token in request.stop_ids), None)
        stream = TextStream(self._decode, request.stop_strings)
        count = 0
        for token in ids if end is None else ids[:end]:
            stream.feed(token)
            count += 1
            if stream.stopped:
                break
        stream.close()
        reason: Reason = "stop_string" if stream.stopped else "length" if end is None else "stop"
        kept = ids[: count + (reason == "stop")]
        return Completion(ids=tuple(kept), text=stream.text, reason=reason)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _pad(self) -> int:
        pad = self._tokenizer.pad_token_id
        return int(pad if pad is not None else self._tokenizer.eos_token_id or 0)


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 (B, L); all prompts end at the last column, after which the answers begin."""
    width = max(map(len, prompts))
    ids_BL = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask_BL = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids_BL, mask_BL


@torch.no_grad()
def shares_batches(model: Any) -> bool:
    """Whether left-padded batches give each prompt the same logits as alone; tried with two short random prompts.

    Some models with recurrent state treat padding as tokens, or mix up the rows of a batch.
    """
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(known_tokens(model), (n,), generator=generator).tolist() for n in (5, 12)]
    with evaluating(model):
        expected_NV = torch.cat([_first_logits(model, [prompt]) for prompt in prompts]).double()
        found_NV = _first_logits(model, prompts).double()
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(model.dtype, 5e-2)
    apart_N = (found_NV - expected_NV).norm(dim=-1) / expected_NV.norm(dim=-1).clamp_min(1e-30)
    return bool(apart_N.max() < tolerance)


def _first_logits(model: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits of two new tokens for each prompt, the second computed with a cache: (prompts x 2, V)."""
    ids_BL, mask_BL = (tensor.to(model.device) for tensor in left_padded(prompts, 0))
    plain = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "pad_token_id": 0}
    output = model.generate(
        input_ids=ids_BL,
        attention_mask=mask_BL,
        max_new_tokens=2,
        min_new_tokens=2,
        output_logits=True,
        return_dict_in_generate=True,
        **plain,
    )
    return torch.stack(output.logits, dim=1).flatten(0, 1)


def _alike(batch: Sequence[tuple[int, Request]], shares: bool) -> list[list[tuple[int, Request]]]:
    """Groups of requests that one call of `generate` can answer; sampled ones are alone, and without `shares` all."""
    groups: dict[Any, list[tuple[int, Request]]] = {}
    for number, request in batch:
        alone = number if request.sampling.temperature > 0 or not shares else None
        shared = (request.max_new_tokens, request.sampling, request.stop_ids, request.stop_strings, request.answers)
        groups.setdefault((alone, shared), []).append((number, request))
    return list(groups.values())
