"""Runs a recipe from end to end: load, answer, prepare, train, answer again, save, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch

from honed.data.templates.view import Template
from honed.errors import HonedError, RecipeError, RunError, first_line, storage_errors
from honed.evaluate.before_after import Form, compare
from honed.generate.answer import Answer, answers, ask, need_template
from honed.model.adapters.adapters import has_adapter, lora_config
from honed.model.adapters.load_trained import as_new_adapter
from honed.model.load.quantize import quantization_config
from honed.recipe import LoraRecipe, Recipe, in_words, suggest
from honed.report.run.report import write_run_report
from honed.train.forward import vision
from honed.train.loop.recipe import PlainTrainer, config_of, known_to_transformers
from honed.train.options.config import SFTConfig
from honed.train.ranks import Stopped, until_sigterm
from honed.train.run.card import card
from honed.train.run.data import RunData, check_data, read_questions
from honed.train.run.output import keep_another
from honed.train.run.ranks import RunRanks, check_ranks
from honed.train.run.record import RunRecord, device_name
from honed.train.run.replay import steps_told
from honed.train.run.start import load_weights, prepare_run
from honed.train.run_folder import checkpoint
from honed.train.run_folder.folder import RunFolder
from honed.train.run_folder.secrets import masked_yaml

if TYPE_CHECKING:  # it imports transformers' Trainer and `datasets`, which the plain engine does not need
    from honed.train.trainer.trainer import SFTTrainer

Say = Callable[[str], None]

ENGINES = ("trainer", "plain")
SAME_NAMES = (  # options with the same name in a recipe's `data` and in SFTConfig
    *("template", "system", "train_on", "train_reasoning", "train_tool_calls", "max_length", "overlong", "bad_rows"),
    *("packing", "packing_strategy", "share_prefixes", "streaming", "shuffle_buffer"),
)
ONE_OR_MORE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run's folder, its before/after comparison ({} without samples), whether it finished, and whether this is the
    `first` process, which shows the result."""

    folder: Path
    samples: dict[str, Any]
    finished: bool = True
    first: bool = True


def run(recipe: Recipe, *, command: str, say: Say, overwrite: bool = False) -> RunResult:
    """Trains as the recipe says; `RunFolder` describes the output folder.

    Args:
        command: the command line, recorded in `run.json`.
        overwrite: whether to replace a finished run in the folder.

    Raises:
        HonedError: a problem that the user can fix before starting the run again.
    """
    checked = CheckedRecipe.of(recipe)
    ranks = RunRanks.of(checked.args)
    if not ranks.first:
        finished = _train_along(checked, ranks)
        return RunResult(folder=Path(recipe.output), samples={}, finished=finished, first=False)
    folder = RunFolder(recipe.output)
    with folder.locked(say):
        return _run_alone(checked, folder, ranks, command=command, say=say, overwrite=overwrite)


def _run_alone(
    checked: CheckedRecipe, folder: RunFolder, ranks: RunRanks, *, command: str, say: Say, overwrite: bool
) -> RunResult:
    recipe = checked.recipe
    if not overwrite:
        keep_another(folder, recipe)
    folder.claim(masked_yaml(recipe), overwrite=overwrite)
    record = RunRecord(folder, recipe, command, checked.args)
    if overwrite and not checked.args.resume_from_checkpoint:
        checkpoint.clear(folder.path)  # else the run resumes the one that it replaces
    try:
        samples = _run(checked, folder, record, ranks, say)
        for name in record.changed_data():
            say(f"note: {name} was changed while this run used it; training may have used its old or its new content")
    except Stopped as stopped:
        record.end("interrupted")
        say(str(stopped))
        return RunResult(folder=folder.path, samples={}, finished=False)
    except BaseException as error:
        with suppress(OSError, RunError):  # a full disk must not hide the original error
            record.end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    record.end("finished")
    write_run_report(folder.path)
    return RunResult(folder=folder.path, samples=samples)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRecipe:
    """A recipe that was checked before anything is loaded or written.

    Attributes:
        recipe, args: the recipe as given, and as training arguments.
        questions, form: the questions asked before and after training, and the form that answers should have.
    """

    recipe: Recipe
    args: SFTConfig
    questions: list[str]
    form: Form | None

    @classmethod
    def of(cls, recipe: Recipe) -> CheckedRecipe:
        """Checks a recipe.

        Raises:
            HonedError: the recipe cannot be run.
        """
        samples = recipe.samples
        if samples.max_new_tokens < 1:
            raise RecipeError(f"samples.max_new_tokens is {samples.max_new_tokens}.", fix="set 1 or more")
        if Path(recipe.model).is_dir() and Path(recipe.model).resolve() == Path(recipe.output).expanduser().resolve():
            raise RunError(f"{recipe.output} is the model's own folder.", fix="name another with output=FOLDER")
        if recipe.quantization is not None:
            quantization_config(recipe.quantization, dtype=torch.float32)  # checks the name and the package
            if recipe.lora is None:
                raise RecipeError("A quantised model's own weights cannot be trained.", fix="leave lora=null out")
        if recipe.engine not in ENGINES:
            raise RecipeError(f"engine is {recipe.engine!r}.", fix=f"set one of {', '.join(ENGINES)}")
        args = training_arguments(recipe)
        check_ranks(args, engine=recipe.engine, asks=bool(samples.prompts))
        if recipe.engine == "plain":
            config_of(args)
        questions = read_questions(samples.prompts) if samples.prompts else []
        form = Form(pattern=samples.form, says=samples.form_says) if samples.form else None
        as_new_adapter(recipe)  # checks the adapter, if the model is one
        return cls(recipe=recipe, args=args, questions=questions, form=form)


def _run(checked: CheckedRecipe, folder: RunFolder, record: RunRecord, ranks: RunRanks, say: Say) -> dict[str, Any]:
    recipe, args = checked.recipe, checked.args
    with record.timed("prepare"):
        start = prepare_run(recipe, args, ranks, asks=bool(checked.questions))
    processing_class, template = start.processing_class, start.template
    with record.timed("load"):
        model = load_weights(recipe, args, processing_class)
    say(f"{recipe.model}: {model.num_parameters():,} parameters, {str(model.dtype)[6:]} on {device_name(args.device)}")
    if has_adapter(model):
        say(f"note: {recipe.model} holds an adapter of {as_new_adapter(recipe).model}; it is trained further")
    tokenizer = vision.tokenizer_of(processing_class)
    with record.timed("answer before"):
        before = _answers(checked, model, tokenizer, template, desc="Answering before")
    with record.timed("prepare"), ranks.one_per_node_first():
        trainer = make_trainer(recipe, args, model, processing_class, start.data)
    _tell(trainer, folder, say)
    record.model(trainer.model)
    folder.need_space(record.trainable_bytes + (64 << 20))
    if not isinstance(trainer, PlainTrainer):  # the plain loop writes this file itself
        _keep_metrics(trainer, folder)
    with record.timed("train"), storage_errors(folder.path), steps_told(trainer, folder, say):
        _train(trainer, args, say)
    if trainer.stream_loader is not None:  # only now is a stream's ledger complete
        _tell_rows(trainer, folder, say)
    with record.timed("answer after"):
        after = _answers(checked, trainer.model, tokenizer, template, desc="Answering after")
    with record.timed("save"):
        save(trainer, folder, recipe)
    samples = compare(checked.questions, before, after, checked.form) if checked.questions else {}
    if samples:
        folder.write_json("samples.json", samples)
    return samples


def _keep_metrics(trainer: SFTTrainer, folder: RunFolder) -> None:
    from honed.train.trainer.callbacks import MetricsFile

    trainer.add_callback(MetricsFile(folder / "metrics.jsonl"))


def _train_along(checked: CheckedRecipe, ranks: RunRanks) -> bool:
    """Trains on ranks other than the first; returns whether training finished without being stopped."""
    start = prepare_run(checked.recipe, checked.args, ranks, asks=bool(checked.questions))
    model = load_weights(checked.recipe, checked.args, start.processing_class)
    with ranks.one_per_node_first():
        trainer = make_trainer(checked.recipe, checked.args, model, start.processing_class, start.data)
    try:
        _train(trainer, checked.args, say=lambda text: None)
    except Stopped:  # the first rank reports it
        return False
    trainer.save_model(checked.recipe.output)  # writes nothing on this rank, but takes part in gathering FSDP's shards
    return True


def _train(trainer: SFTTrainer | PlainTrainer, args: SFTConfig, say: Say) -> None:
    """Trains, resuming from the newest checkpoint in the run's folder if there is one.

    Raises:
        Stopped: SIGTERM came.
    """
    if isinstance(trainer, PlainTrainer):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        return
    trainer.tell = lambda text: say(f"note: {text}")
    with until_sigterm() as trainer.asked_to_stop:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or "auto")


def _tell(trainer: SFTTrainer | PlainTrainer, folder: RunFolder, say: Say) -> None:
    """Shows and saves what happened to the data, and shows the notes."""
    _tell_rows(trainer, folder, say)
    shown = () if trainer.ledger is None else trainer.ledger.notes  # in its summary
    for note in trainer.notes:
        if note not in shown:
            say(f"note: {note}")


def _tell_rows(trainer: SFTTrainer | PlainTrainer, folder: RunFolder, say: Say) -> None:
    if trainer.ledger is not None:
        folder.write_json("ledger.json", trainer.ledger.as_dict())
        say(trainer.ledger.summary())


def training_arguments(recipe: Recipe) -> SFTConfig:
    """Converts the recipe's `train` and `data` into an SFTConfig.

    Raises:
        RecipeError: an unknown key or an invalid value.
    """
    train = known_to_transformers(recipe.train) if recipe.engine == "plain" else recipe.train
    _check_train(train)
    data = recipe.data
    evaluates = data.held_out is not None or data.eval_share is not None
    own = {
        **{name: getattr(data, name) for name in SAME_NAMES},
        "output_dir": recipe.output,
        "disable_tqdm": False,  # else transformers' log level decides
        "data_format": data.format,
        "template_arguments": dict(data.template_arguments),
        "columns": dict(data.columns),
        "train_roles": list(data.train_roles),
        "data_cache": data.cache,
        "dataset_num_proc": data.workers,
        "dataset_text_field": data.text_field,
        "eval_strategy": "epoch" if evaluates else "no",
    }
    try:
        args = SFTConfig(**{**own, **train})
    except HonedError:
        raise
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"The training arguments do not fit together: {error}", fix="check the keys below `train`"
        ) from None
    args.prepare_options()
    check_data(data, seed=args.seed, max_steps=args.max_steps)
    if args.eval_strategy.value != "no" and not evaluates:
        raise RecipeError(
            "eval_strategy is set, but there is nothing to evaluate on.",
            fix="set data.held_out=FILE, or data.eval_share=0.02",
        )
    return args


def _check_train(train: Mapping[str, Any]) -> None:
    """Refuses unknown keys, and values that would fail only in the middle of a run."""
    hints = get_type_hints(SFTConfig)
    known = {f.name for f in dataclasses.fields(SFTConfig) if f.init}
    for key, value in train.items():
        if key not in known:
            hint = suggest(key, known)
            everywhere = "see honed train --help-all, and transformers' TrainingArguments"
            fix = hint if hint.startswith("did") else everywhere
            raise RecipeError(f"Unknown key {key}: it is neither the recipe's nor SFTConfig's.", fix=fix)
        kinds = get_args(hints[key]) or (hints[key],)
        if set(kinds) <= {int, float, bool, NoneType} and not _is_one_of(value, kinds):
            raise RecipeError(f"{key} is {value!r}.", fix=f"it takes {in_words(kinds)}")
        if (key in ONE_OR_MORE and value < 1) or (key == "seed" and value < 0):
            raise RecipeError(f"{key} is {value}.", fix=f"set {0 if key == 'seed' else 1} or more")
    resume = train.get("resume_from_checkpoint")
    if resume is not None and not (isinstance(resume, str) and Path(resume).is_dir()):
        raise RecipeError(f"resume_from_checkpoint: no such folder: {resume}", fix="name a checkpoint-N of the run")


def _is_one_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value has one of these types; an int counts as a float, a bool as neither."""
    return type(value) in kinds or (type(value) is int and float in kinds)


def make_trainer(
    recipe: Recipe, args: SFTConfig, model: Any, processing_class: Any, data: RunData
) -> SFTTrainer | PlainTrainer:
    """Creates the recipe's trainer, which prepares the data."""
    adapter = None if recipe.lora is None or has_adapter(model) else lora_config(**lora_options(recipe.lora))
    try:
        trainer: SFTTrainer | PlainTrainer = engine_of(recipe)(
            model,
            args=args,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            processing_class=processing_class,
            peft_config=adapter,
        )
    except (ImportError, RuntimeError) as error:
        if "install" not in str(error):
            raise
        raise RecipeError(
            f"A package is missing: {first_line(error)}", fix="install it, or leave report_to out"
        ) from None
    if data.note and trainer.ledger is not None:
        trainer.ledger.notes.append(data.note)
    return trainer


def engine_of(recipe: Recipe) -> Any:
    """Returns the trainer's class, importing its libraries only now."""
    if recipe.engine == "plain":
        return PlainTrainer
    from honed.train.trainer.trainer import SFTTrainer

    return SFTTrainer


def lora_options(lora: LoraRecipe) -> dict[str, Any]:
    """Returns the recipe's `lora` section as keyword arguments of `lora_config`."""
    return {f.name: getattr(lora, f.name) for f in dataclasses.fields(lora)}


def save(trainer: SFTTrainer | PlainTrainer, folder: RunFolder, recipe: Recipe) -> None:
    """Saves weights, tokenizer and template, a generation config with training's stop tokens, and a model card."""
    with folder.saving() as place:
        trainer.save_model(str(place))
        trainer.model.generation_config.save_pretrained(place)
        # a pickle of the arguments; the recipe has them in a safe format
        (place / "training_args.bin").unlink(missing_ok=True)
        (place / "README.md").write_text(card(recipe, trainer.ledger), encoding="utf-8")  # peft's has local paths


def _answers(
    checked: CheckedRecipe, model: Any, tokenizer: Any, template: Template | None, *, desc: str
) -> list[Answer]:
    if not checked.questions:
        return []
    return answers(
        model,
        tokenizer,
        need_template(template, checked.recipe.model),
        [ask(question, checked.recipe.data.system) for question in checked.questions],
        max_new_tokens=checked.recipe.samples.max_new_tokens,
        desc=desc,
    )
