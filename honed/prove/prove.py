"""Checks all statements on a recipe, one after the other."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from honed.errors import HonedError, RecipeError, first_line
from honed.model.device import named_device
from honed.model.load.added_tokens import with_tokens
from honed.model.load.load import load_tokenizer
from honed.model.load.vocabulary import with_pad_token
from honed.prove import runs, sums, texts
from honed.prove.models import Chosen, choose
from honed.prove.sample import documents_of, read_sample
from honed.prove.statement import FAILED, NOT_CHECKED, PASSED, Finding, NotChecked
from honed.prove.subject import Check, Subject
from honed.recipe import Recipe
from honed.train.forward.lengths import fit_length
from honed.train.forward.seams import find_seams
from honed.train.forward.vision import is_processor, load_processing_class
from honed.train.loop.recipe import known_to_transformers
from honed.train.run.data import run_data
from honed.train.run.dry_run import meta_model
from honed.train.run.run import training_arguments

STATEMENTS: dict[str, Check] = {**sums.STATEMENTS, **texts.STATEMENTS, **runs.STATEMENTS}
SECONDS_OF_A_PROCESS = 2.0  # to start one that imports torch and transformers
SECONDS_OF_A_RUN = 1.0  # to make a trainer, and to save and load
DTYPES = ("float64", "float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where, and on how much of the model, statements are checked; see `honed.prove.models`."""

    size: str = "auto"
    device: str = "cpu"
    dtype: str = "float64"


def make_subject(recipe: Recipe, place: Place) -> Subject:
    """Reads the rows and makes the model.

    Raises:
        HonedError: the recipe, the data or the model cannot be used.
    """
    if place.dtype not in DTYPES:
        raise RecipeError(f"dtype is {place.dtype!r}.", fix=f"set one of {', '.join(DTYPES)}")
    device = named_device(place.device)
    train = known_to_transformers(recipe.train)
    args = training_arguments(dataclasses.replace(recipe, engine="trainer", train=train))
    rows = run_data(dataclasses.replace(recipe.data, eval_share=None), seed=args.seed).train
    if is_processor(load_processing_class(recipe.model, None if recipe.data.streaming else rows)):
        raise RecipeError("These rows show images, and statements are about text.", fix="prove a recipe of text alone")
    tokenizer = with_pad_token(with_tokens(load_tokenizer(recipe.model), **args.token_options))
    dtype = getattr(torch, place.dtype)
    model, drill = choose(recipe, args, tokenizer, size=place.size, device=device, dtype=dtype)
    fit_length(args, meta_model(recipe.model), tokenizer)  # rows are cut as training cuts them
    sample = read_sample(rows, tokenizer, args.prepare_options())
    return Subject(
        recipe=recipe,
        sample=sample,
        rows=documents_of(sample),
        model=model,
        drill=drill,
        seams=find_seams(model.make()),
        dtype=dtype,
        device=device,
    )


def findings(subject: Subject, statements: dict[str, Check] | None = None) -> Iterator[Finding]:
    """The finding of each statement, in order, as soon as it is known."""
    for name, check in (STATEMENTS if statements is None else statements).items():
        yield find(name, check, subject)


def expected_seconds(subject: Subject, statements: dict[str, Check] | None = None) -> dict[str, float]:
    """About how long each statement will take, from timing one step that they need anyway; {} if that step fails."""
    started = time.perf_counter()
    try:
        sums.one_by_one(subject)
    except Exception:  # of torch, transformers or ours
        return {}
    step = time.perf_counter() - started
    drill = step * min(1.0, parameters_of(subject.drill) / parameters_of(subject.model))
    return {name: _cost(check, step, drill) for name, check in (statements or STATEMENTS).items()}


def parameters_of(chosen: Chosen) -> int:
    """Parameters of a model with its adapter."""
    return sum(p.numel() for p in chosen.make().parameters())


def _cost(check: Check, step: float, drill: float) -> float:
    if check in sums.STATEMENTS.values():
        return step
    steps, processes = runs.COSTS.get(check, (0, 0))
    return steps * drill + processes * SECONDS_OF_A_PROCESS + (SECONDS_OF_A_RUN if steps else 0.0)


def find(name: str, check: Check, subject: Subject) -> Finding:
    """Checks one statement. If the check itself breaks, the statement has failed."""
    started = time.perf_counter()
    try:
        measured = check(subject)
    except (NotChecked, HonedError) as reason:
        detail = str(reason).partition("\n")[0]
        return Finding(statement=name, status=NOT_CHECKED, detail=detail, seconds=time.perf_counter() - started)
    except Exception as error:  # whatever it is, the other statements must still be checked
        detail = f"the check itself broke: {first_line(error)}"
        return Finding(statement=name, status=FAILED, detail=detail, seconds=time.perf_counter() - started)
    holds = not math.isnan(measured.value) and measured.value <= measured.bound
    return Finding(
        statement=name,
        status=PASSED if holds else FAILED,
        measured=float(measured.value),
        bound=float(measured.bound),
        detail=measured.detail,
        seconds=time.perf_counter() - started,
    )
