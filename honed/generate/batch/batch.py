"""Data made by a model: many prompts answered into a file, in a batch that can be stopped and resumed.

    prompts -> engine -> journal (every answer, as it comes) -> filters -> OUT, one conversation a line
                                                                        -> OUT.ledger.json, what was dropped and why

Answers asked for = kept + dropped by reason, always. OUT is written whole at the end, in the order of the rows, and
depends on neither interruptions nor the order in which answers came.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from honed.data.example import Message
from honed.generate.batch.filters import Candidate, Filters, load_verifier, verdicts
from honed.generate.batch.journal import Answered, Journal
from honed.generate.batch.prompts import Prompt
from honed.generate.request import Request, TextEngine
from honed.generate.sampling import Sampling
from honed.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How every prompt of a batch is asked.

    Attributes:
        model: its name, which the journal keeps.
        samples: answers per prompt.
    """

    model: str
    samples: int = 1
    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """As the journal's first line keeps them; `samples` may grow from run to run."""
        kept = asdict(self)
        del kept["samples"]
        return {**kept, "stop_ids": sorted(self.stop_ids), "stop_strings": list(self.stop_strings)}


def answer_batch(
    prompts: Sequence[Prompt],
    engine: TextEngine,
    encode: Callable[[Sequence[Message]], list[int]],
    *,
    out: Path,
    asking: Asking,
    filters: Filters,
    known: Sequence[str] = (),
) -> dict[str, Any]:
    """Answers what is not answered yet, then filters all answers into `out`. Returns the ledger.

    Args:
        encode: messages to the ids of their prompt.
        out: JSON lines, `{"messages": [...], "row": n, "sample": k, "reason": ..., "tokens": n}`. Beside it lie
            `<out>.journal` and `<out>.ledger.json`.
        known: texts that a kept answer may not resemble, where near duplicates are dropped.

    Raises:
        RunError: the journal beside `out` was made with other settings.
        DataError, RecipeError: as `verdicts` does; a wrong verifier is found before anything is answered.
    """
    if filters.verify:
        load_verifier(filters.verify)
    journal = Journal(out.with_name(out.name + ".journal"), asking.settings())
    wanted = [(prompt, sample) for prompt in prompts for sample in range(asking.samples)]
    missing = [(prompt, sample) for prompt, sample in wanted if _key(prompt, sample) not in journal.found]
    _answer(missing, engine, encode, journal=journal, asking=asking)
    answered = [journal.found[_key(prompt, sample)] for prompt, sample in wanted]
    candidates = [_candidate(prompt, one) for (prompt, _), one in zip(wanted, answered, strict=True)]
    reasons = verdicts(candidates, filters, known)
    rows = zip(wanted, answered, reasons, strict=True)
    kept = [_row(prompt, one) for (prompt, _), one, reason in rows if reason is None]
    _replace(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    ledger = {
        "prompts": len(prompts),
        "answers": len(wanted),
        "answered_before": len(wanted) - len(missing),
        "repaired_last_line": journal.repaired,
        "kept": len(kept),
        "dropped": dict(Counter(reason for reason in reasons if reason is not None).most_common()),
        "tokens": sum(one.tokens for one in answered),
        "settings": asking.settings(),
        "filters": asdict(filters),
    }
    _replace(out.with_name(out.name + ".ledger.json"), json.dumps(ledger, indent=1, ensure_ascii=False) + "\n")
    return ledger


def _key(prompt: Prompt, sample: int) -> tuple[int, str, int]:
    return prompt.source.row, prompt.digest, sample


def _answer(
    missing: Sequence[tuple[Prompt, int]],
    engine: TextEngine,
    encode: Callable[[Sequence[Message]], list[int]],
    *,
    journal: Journal,
    asking: Asking,
) -> None:
    """Asks the engine. Each answer's random draws depend on its row and number alone, not on what else is missing."""
    if not missing:
        return
    runs = _runs(missing)

    def requests() -> Iterator[Request]:
        for prompt, first, count in runs:
            yield Request(
                prompt_ids=encode(prompt.messages),
                max_new_tokens=asking.max_new_tokens,
                sampling=asking.sampling,
                stop_ids=asking.stop_ids,
                stop_strings=asking.stop_strings,
                seed=_row_seed(asking.seed, prompt.source.row),
                answers=count,
                first=first,
            )

    with journal.adding() as add, Progress(desc="Answering", total=len(missing), unit="answer") as bar:
        for piece in engine.run(requests()):
            if piece.done is None:
                continue
            prompt, done = runs[piece.request][0], piece.done
            add(
                Answered(
                    row=prompt.source.row,
                    digest=prompt.digest,
                    sample=piece.answer,
                    text=done.text,
                    reason=done.reason,
                    tokens=len(done.ids),
                )
            )
            bar.advance()


def _runs(missing: Sequence[tuple[Prompt, int]]) -> list[tuple[Prompt, int, int]]:
    """Prompts with their missing samples, as runs of numbers that follow each other: first and how many."""
    runs: list[tuple[Prompt, int, int]] = []
    for prompt, sample in missing:
        if runs and runs[-1][0] is prompt and sum(runs[-1][1:]) == sample:
            runs[-1] = (prompt, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((prompt, sample, 1))
    return runs


def _row_seed(seed: int, row: int) -> int:
    """A seed of 32 bits for a row, which depends on nothing else that is asked."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row}".encode()).digest()[:4], "big")


def _candidate(prompt: Prompt, answered: Answered) -> Candidate:
    return Candidate(
        place=str(prompt.source),
        row=prompt.row,
        question=prompt.messages[-1].content,
        answer=answered.text,
        reason=answered.reason,
    )


def _row(prompt: Prompt, answered: Answered) -> dict[str, Any]:
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    return {
        "messages": [*turns, {"role": "assistant", "content": answered.text.strip()}],
        "row": answered.row,
        "sample": answered.sample,
        "reason": answered.reason,
        "tokens": answered.tokens,
    }


def _replace(path: Path, content: str) -> None:
    """Written beside its place and renamed, so that no reader finds half a file."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(content, encoding="utf-8")
    beside.replace(path)
