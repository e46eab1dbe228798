"""A model for EleutherAI's lm-evaluation-harness: its tasks, honed's scoring and generation.

Contexts come as text to which the harness has applied the chat template; continuations are scored with the chunked
head, and answers are generated as everywhere in honed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from honed.data.batch.table import PackedRow
from honed.data.example import Conversation, Message
from honed.data.templates.view import Piece, View
from honed.errors import HonedError, MissingExtraError, RecipeError
from honed.evaluate.held_out import Collate, Scorer, score
from honed.generate.answer import answers, ask

MAX_NEW_TOKENS = 256  # the default of the harness's own models


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A template that leaves a message unchanged, because its text is already a whole prompt."""

    alpaca_separator: str = "\n"

    def views(self, conversation: Conversation, *, train_on: str, apart: bool = False) -> list[View]:
        """Not supported: this template is only for prompts."""
        raise NotImplementedError("a verbatim template trains nothing")

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[Piece, ...]:
        """The texts of the messages."""
        return tuple(Piece(text=message.content) for message in messages)


class Requests:
    """Answers the requests of `lm_eval.api.model.LM`.

    Args:
        model, tokenizer: the model; the tokenizer has a chat template.
        scorer, collate: see `honed.evaluate.held_out.score`.
        max_length: the model's maximum context; longer contexts are truncated on the left, as in the harness, and
            counted in `cut`.
    """

    def __init__(self, model: Any, tokenizer: Any, *, scorer: Scorer, collate: Collate, max_length: int) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self.scorer, self.collate = scorer, collate
        self.cut = 0

    @property
    def tokenizer_name(self) -> str:
        """For the harness's own cache."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The text of the template, which the harness stores with the results."""
        return str(self.tokenizer.chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the log-likelihood in nats, and whether greedy decoding would give it."""
        rows = [self._row(*request.args) for request in requests]
        found = score(rows, self.scorer, self.collate, extras=True, desc="Scoring continuations")
        return [(-float(one.nll_N.sum()), bool(np.all(one.correct_N))) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused: the perplexity of running text does not measure a model that was tuned to answer."""
        raise RecipeError(
            "--lm-eval: this task asks for the perplexity of running text.",
            fix="leave it out; held-out loss on rows {text: ...} is what `honed eval --data` gives",
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """For each (context, arguments): the answer up to the first of the stop strings."""
        found: dict[int, str] = {}
        for arguments, numbers in _alike([request.args[1] for request in requests]):
            contexts = [requests[number].args[0] for number in numbers]
            length, sampling = _sampling(arguments)
            said = answers(
                self.model,
                self.tokenizer,
                Verbatim(),
                [ask(context) for context in contexts],
                max_new_tokens=length,
                desc="Answering tasks",
                **sampling,
            )
            for number, answer in zip(numbers, said, strict=True):
                found[number] = before_stops(answer.text, arguments.get("until") or [])
        return [found[number] for number in range(len(requests))]

    def _row(self, context: str, continuation: str) -> PackedRow:
        """Ids of both, the continuation's with weight 1. Spaces at the boundary belong to the continuation."""
        stripped = context.rstrip()
        whole = self._ids(context + continuation)
        border = len(self._ids(stripped)) if stripped else 0
        if not border:
            whole, border = [self._first(), *whole], 1
        surplus = max(0, len(whole) - self.max_length)
        if surplus >= border:
            raise RecipeError(
                f"--lm-eval: a continuation of {len(whole) - border} tokens does not fit into {self.max_length}.",
                fix="leave the task out",
            )
        self.cut += surplus > 0
        weights = np.zeros(len(whole) - surplus, dtype=np.float32)
        weights[border - surplus :] = 1.0
        return PackedRow(input_ids=np.array(whole[surplus:], dtype=np.int32), weights=weights, lengths=(len(weights),))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _first(self) -> int:
        """The token before a text without context."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)


def need_lm_eval() -> None:
    """Raises MissingExtraError if lm-eval is not installed; imports nothing."""
    if find_spec("lm_eval") is None:
        raise MissingExtraError("lm_eval", "eval")


def run_tasks(lm: Any, tasks: Sequence[str], *, limit: int | None, seed: int) -> dict[str, dict[str, float]]:
    """The harness's results for each task, under its own metric names ("acc,none").

    Args:
        lm: the model, from `as_lm`.
        tasks: task names of the harness, or paths of YAML files.
        limit: questions per task; None for all.
        seed: random seed, also for few-shot examples.

    Raises:
        RecipeError: a task is unknown, or its data cannot be loaded.
    """
    try:
        found = import_module("lm_eval").simple_evaluate(
            model=lm,
            tasks=list(tasks),
            limit=limit,
            apply_chat_template=True,
            log_samples=False,
            random_seed=seed,
            fewshot_random_seed=seed,
        )
    except HonedError:
        raise
    except (KeyError, ValueError, OSError, ConnectionError) as error:
        raise RecipeError(
            f"--lm-eval {','.join(tasks)}: {type(error).__name__}: {error}",
            fix="`lm_eval ls tasks` lists the tasks; their data come from the Hugging Face Hub",
        ) from None
    return {task: _numbers(results) for task, results in found["results"].items()}


def as_lm(requests: Requests) -> Any:
    """The same object as an instance of `lm_eval.api.model.LM`, which the harness requires.

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    need_lm_eval()
    kind = type("HonedLM", (Requests, import_module("lm_eval.api.model").LM), {})
    return kind(
        requests.model,
        requests.tokenizer,
        scorer=requests.scorer,
        collate=requests.collate,
        max_length=requests.max_length,
    )


def before_stops(text: str, stops: str | Sequence[str]) -> str:
    """The text up to the first of the stop strings."""
    every = [stops] if isinstance(stops, str) else stops
    return text[: min((at for stop in every if stop and (at := text.find(stop)) >= 0), default=len(text))]


def _alike(arguments: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[int]]]:
    """Each distinct set of arguments, with the numbers of the requests that have it."""
    groups: dict[str, list[int]] = {}
    for number, own in enumerate(arguments):
        groups.setdefault(repr(sorted(own.items())), []).append(number)
    return [(arguments[numbers[0]], numbers) for numbers in groups.values()]


def _sampling(arguments: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Maximum length of the answer, and arguments of `answers`; greedy unless the task asks for sampling."""
    own = {key: value for key, value in arguments.items() if key not in ("until", "max_gen_toks", "do_sample")}
    length = int(arguments.get("max_gen_toks", MAX_NEW_TOKENS))
    if not arguments.get("do_sample") or own.get("temperature") == 0:
        return length, {"do_sample": False}
    return length, {"do_sample": True, **own}


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a task; their names are "metric,filter"."""
    named = {name: value for name, value in results.items() if "," in name and isinstance(value, (int, float))}
    return {name: float(value) for name, value in named.items() if math.isfinite(value)}
