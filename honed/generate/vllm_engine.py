"""vLLM behind the same interface; needs a GPU. Optional: `pip install 'honed[vllm]'`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from honed.errors import MissingExtraError, ModelError
from honed.generate.request import Completion, Piece, Reason, Request
from honed.model.load.load import is_adapter, resolve

AT_A_TIME = 256  # requests passed to vLLM together; it schedules them itself


class VllmEngine:
    """Answers requests with vLLM; an answer comes as one piece.

    Args:
        name: the model, as in honed's other commands.
        options: keyword arguments of `vllm.LLM`.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: the model is an adapter, which vLLM does not load without its base model.
    """

    def __init__(self, name: str, **options: Any) -> None:
        try:
            self._vllm: Any = importlib.import_module("vllm")
        except ImportError:
            raise MissingExtraError("vllm", "vllm") from None
        folder = resolve(name)
        if is_adapter(folder):
            raise ModelError(
                f"{name} holds an adapter, which vLLM cannot load on its own.",
                fix="merge it first (honed export ADAPTER MERGED), or leave --engine out",
            )
        self._llm = self._vllm.LLM(model=folder, **options)

    def run(self, requests: Iterable[Request], *, pieces: bool = False) -> Iterator[Piece]:
        """One piece per answer."""
        numbered = enumerate(requests)
        while batch := list(islice(numbered, AT_A_TIME)):
            prompts = [{"prompt_token_ids": list(request.prompt_ids)} for _, request in batch]
            parameters = [self._parameters(request) for _, request in batch]
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
            for (number, request), output in zip(batch, outputs, strict=True):
                for place, one in enumerate(output.outputs):
                    done = Completion(ids=tuple(one.token_ids), text=one.text, reason=_reason(one, request))
                    yield Piece(request=number, answer=request.first + place, text=done.text, done=done)

    def _parameters(self, request: Request) -> Any:
        sampling = request.sampling
        return self._vllm.SamplingParams(
            n=request.answers,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=request.seed + request.first,
            max_tokens=request.max_new_tokens,
            stop=list(request.stop_strings),
            stop_token_ids=sorted(request.stop_ids),
        )


def _reason(output: Any, request: Request) -> Reason:
    """vLLM's `stop_reason` is the stop string, the id of the stop token, or None for the model's own stop token."""
    if output.finish_reason != "stop":
        return "length"
    return "stop_string" if output.stop_reason in request.stop_strings else "stop"
