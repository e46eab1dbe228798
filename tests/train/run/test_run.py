"""A recipe run from end to end on a tiny model: what it leaves, and that others can load it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import make_template, prepare
from honed.data.templates.plain import PlainTemplate
from honed.errors import DataError, RecipeError, RunError
from honed.recipe import Recipe, load_recipe, recipe_from
from honed.train.run import run as run_module
from honed.train.run import start as start_module
from honed.train.run.run import read_questions, run, training_arguments
from honed.train.trainer.callbacks import MetricsFile

IDS = torch.arange(3, 40)[None]
STEPS = 3
RECORDS = {"recipe.yaml", "run.json", "metrics.jsonl", "ledger.json", "samples.json", "report.html", "worst_steps.json"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
ADAPTER = {"adapter_model.safetensors", "adapter_config.json", "README.md"}
WHOLE = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """float32, whatever this machine is best at, and one thread: others may be using the rest."""
    monkeypatch.setattr("honed.model.load.load.pick_dtype", lambda device: torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model_folder(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    folder = tmp_path / "tiny"
    model = tiny_model()
    model.generation_config.eos_token_id = 9  # not what is trained
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tree(tmp_path: Path, model_folder: Path, chat_rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A recipe as YAML gives it: three steps that change a lot, two questions."""
    rows, questions = tmp_path / "rows.jsonl", tmp_path / "questions.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in chat_rows))
    questions.write_text('{"prompt": "why fox"}\n{"prompt": "为什么？"}\n', encoding="utf-8")
    return {
        "model": str(model_folder),
        "data": str(rows),
        "train": {"max_steps": STEPS, "learning_rate": 0.05, "warmup_steps": 0, "per_device_train_batch_size": 4},
        "samples": {"prompts": str(questions), "max_new_tokens": 4, "form": "(?s).*", "form_says": "anything"},
        "output": str(tmp_path / "run"),
    }


class Runner:
    """Runs recipes; keeps the trainer and the lines that were said."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.said: list[str] = []

    def __call__(self, tree: dict[str, Any], **options: Any) -> Path:
        return run(recipe_from(tree), command="honed train", say=self.said.append, **options).folder


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    kept = Runner()
    real = run_module.make_trainer

    def make_trainer(*args: Any) -> Any:
        kept.trainer = real(*args)
        return kept.trainer

    monkeypatch.setattr(run_module, "make_trainer", make_trainer)
    return kept


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model.eval()(IDS).logits)


def test_the_folder_holds_what_it_promises(tree: dict[str, Any], runner: Runner) -> None:
    folder = runner(tree)
    assert names(folder) == RECORDS | TOKENIZER | ADAPTER

    assert load_recipe(folder / "recipe.yaml") == recipe_from(tree)

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert line["loss"] > 0
        assert line["tokens_per_second"] > line["trained_tokens_per_second"] > 0
    assert steps[0]["learning_rate"] == 0.05

    ledger = json.loads((folder / "ledger.json").read_text())
    assert ledger["rows_in"] == ledger["rows_trained"] + sum(ledger["rows_dropped"].values()) == 12
    assert ledger["stop_tokens"] == {"<|im_end|>": 14}

    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["parameters"] > record["trainable_parameters"] > 0
    assert set(record["seconds"]) == {"load", "answer before", "prepare", "train", "answer after", "save"}

    samples = json.loads((folder / "samples.json").read_text())
    assert samples["before"]["followed_form"] == samples["after"]["of"] == 2
    assert [row["prompt"] for row in samples["answers"]] == ["why fox", "为什么？"]
    assert "为什么？" in (folder / "report.html").read_text(encoding="utf-8")
    assert any("12 rows in" in line for line in runner.said)


def test_the_adapter_is_plain_peft(tree: dict[str, Any], runner: Runner, model_folder: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    folder = runner(tree)
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(runner.trainer.model), rtol=0, atol=1e-5)
    untrained = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    assert not torch.allclose(logits(loaded), logits(untrained), atol=0.1)


def test_a_whole_model_is_plain_transformers(tree: dict[str, Any], runner: Runner, model_folder: Path) -> None:
    folder = runner({**tree, "lora": None})
    assert names(folder) == RECORDS | TOKENIZER | WHOLE
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(loaded), logits(runner.trainer.model), rtol=0, atol=1e-5)
    untrained = AutoModelForCausalLM.from_pretrained(model_folder)
    assert not torch.allclose(logits(loaded), logits(untrained), atol=0.1)
    assert loaded.generation_config.eos_token_id == [2, 9]


def test_generation_stops_at_what_was_trained(tree: dict[str, Any], runner: Runner) -> None:
    folder = runner(tree)
    config = GenerationConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>"), 9]
    assert config.pad_token_id == tokenizer.pad_token_id


def test_the_plain_template_is_saved_and_known_again(tree: dict[str, Any], runner: Runner) -> None:
    system = "你是 'Hone' \\ \"x\""
    data = {"files": tree["data"], "template": "plain", "system": system}
    tokenizer = AutoTokenizer.from_pretrained(runner({**tree, "data": data}))
    assert make_template(tokenizer, PrepareOptions()) == PlainTemplate(system=system)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "why"}], tokenize=False, add_generation_prompt=True
    )
    assert text == f"<|im_start|>\n#SYSTEM:{system}\n#USER:why\n#ASSISTANT:"


@pytest.mark.parametrize("from_file", [True, False])
def test_the_template_that_was_trained_is_saved(
    from_file: bool, tree: dict[str, Any], runner: Runner, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    expected = tiny_tokenizer.chat_template
    data = {"files": tree["data"]}
    if from_file:
        expected = expected.replace("'\\n' + m['content']", "' says ' + m['content']").replace("tant\\n", "tant says ")
        assert expected.count(" says ") == 2
        (tmp_path / "own.jinja").write_text(expected)
        data["template"] = str(tmp_path / "own.jinja")
    tokenizer = AutoTokenizer.from_pretrained(runner({**tree, "data": data}))
    assert tokenizer.chat_template == expected


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")])
def test_a_run_cut_short_can_start_again(
    error: type[BaseException], status: str, tree: dict[str, Any], runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(tree["output"])
    with monkeypatch.context() as patch:
        real = MetricsFile.on_log

        def on_log(self: MetricsFile, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            real(self, args, state, control, **kwargs)
            if state.global_step == 2:
                raise error

        patch.setattr(MetricsFile, "on_log", on_log)
        with pytest.raises(error):
            runner(tree)
    assert json.loads((folder / "run.json").read_text())["status"] == status
    assert names(folder) == {"recipe.yaml", "run.json", "metrics.jsonl", "ledger.json"}
    runner(tree)
    assert names(folder) == RECORDS | TOKENIZER | ADAPTER
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == STEPS + 1


def test_a_model_half_saved_does_not_touch_the_earlier_one(
    tree: dict[str, Any], runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runner(tree)
    earlier = (folder / "adapter_model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(GenerationConfig, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runner({**tree, "lora": {"r": 2}}, overwrite=True)
    assert (folder / "adapter_model.safetensors").read_bytes() == earlier
    assert not [name for name in names(folder) if name.startswith(".")]


def test_overwriting_leaves_nothing_of_the_earlier_run(tree: dict[str, Any], runner: Runner) -> None:
    runner(tree)
    with pytest.raises(RunError, match="finished run of another recipe"):
        runner({**tree, "lora": None})
    folder = runner({**tree, "lora": None, "samples": {}}, overwrite=True)
    assert not names(folder) & {"adapter_config.json", "adapter_model.safetensors", "samples.json"}
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(folder)), logits(runner.trainer.model), rtol=0, atol=1e-5
    )


def test_the_same_recipe_gives_the_same_weights(tree: dict[str, Any], runner: Runner) -> None:
    first = (runner(tree) / "adapter_model.safetensors").read_bytes()
    torch.manual_seed(123)
    assert (runner(tree, overwrite=True) / "adapter_model.safetensors").read_bytes() == first


def test_a_run_resumes_from_its_checkpoint(tree: dict[str, Any], runner: Runner, tmp_path: Path) -> None:
    train = {**tree["train"], "save_strategy": "steps", "save_steps": 2}
    whole = (runner({**tree, "train": train}) / "adapter_model.safetensors").read_bytes()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    again = {**train, "resume_from_checkpoint": str(checkpoint)}
    folder = runner({**tree, "train": again}, overwrite=True)
    assert (folder / "adapter_model.safetensors").read_bytes() == whole
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]


def test_a_held_out_file_is_evaluated(tree: dict[str, Any], runner: Runner) -> None:
    folder = runner({**tree, "data": {"files": tree["data"], "held_out": tree["data"]}})
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("eval_loss", 0) > 0] == [STEPS]


def test_the_models_own_folder_is_no_output(tree: dict[str, Any], runner: Runner, model_folder: Path) -> None:
    before = names(model_folder)
    with pytest.raises(RunError, match="the model's own folder"):
        runner({**tree, "output": f"{model_folder}/../tiny"}, overwrite=True)
    assert names(model_folder) == before


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"learning_rte": 1.0}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"learning_rate": None}, "learning_rate is None"),
        ({"max_steps": 2.5}, "max_steps is 2.5"),
        ({"bf16": 1}, "bf16 is 1"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size is 0"),
        ({"logging_steps": 0}, "logging"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "nothing to evaluate on"),
        ({"resume_from_checkpoint": True}, "no such folder"),
    ],
)
def test_arguments_that_cannot_be_used(train: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        training_arguments(recipe_from({"train": train, "output": str(tmp_path)}))


@pytest.mark.parametrize("train", [{"learning_rate": 1, "warmup_steps": 3}, {"bf16": None, "neftune_noise_alpha": 5}])
def test_arguments_that_can(train: dict[str, Any], tmp_path: Path) -> None:
    args = training_arguments(recipe_from({"train": train, "output": str(tmp_path)}))
    given = {key: getattr(args, key) for key in train if train[key] is not None}
    assert given == {key: value for key, value in train.items() if value is not None}


def test_the_data_section_reaches_the_arguments(tmp_path: Path) -> None:
    data = {"max_length": 99, "packing": True, "overlong": "truncate", "train_on": "last", "system": "s"}
    recipe = recipe_from({"data": data, "output": str(tmp_path)})
    options = training_arguments(recipe).prepare_options()
    assert {key: getattr(options, key) for key in data} == data
    assert dataclasses.asdict(recipe)["output"] == training_arguments(recipe).output_dir


def test_a_missing_package_is_named(tree: dict[str, Any], runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`.")

    monkeypatch.setattr("honed.train.trainer.trainer.SFTTrainer", trainer)
    with pytest.raises(RecipeError, match="pip install wandb"):
        runner(tree)


@pytest.mark.parametrize("row", ['{"question": "a"}', '{"prompt": ""}', '{"prompt": 3}', "[1]"])
def test_questions_need_a_prompt(row: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "a"}\n' + row + "\n")
    with pytest.raises(DataError, match=r"q\.jsonl:2: no `prompt`"):
        read_questions(str(file))


def test_the_starter_set_asks_sixteen_questions() -> None:
    questions = read_questions("starter")
    assert len(questions) == len(set(questions)) == 16


def test_nothing_is_loaded_or_written_for_a_recipe_with_a_fault(tmp_path: Path, runner: Runner) -> None:
    recipe = {"model": "./nope", "output": str(tmp_path / "run"), "samples": {"form": "("}}
    with pytest.raises(RecipeError, match="not a regular expression"):
        runner(recipe)
    assert not (tmp_path / "run").exists()
    assert isinstance(recipe_from(recipe), Recipe)


@pytest.mark.parametrize("engine", ["trainer", "plain"])
def test_steps_that_are_all_warm_up_are_told(
    engine: str, tree: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first step, by the schedule that the engine itself has."""
    told: list[str] = []
    tree["samples"] = {"prompts": None}
    for changes in ({"max_steps": 1, "warmup_steps": 0.05}, {"max_steps": 1, "warmup_steps": 0}):
        changed = {**tree, "train": {**tree["train"], **changes}, "engine": engine}
        run(
            recipe_from({**changed, "output": f"{tree['output']}-{changes['warmup_steps']}"}),
            command="",
            say=told.append,
        )
        shown = capsys.readouterr()
        said = "\n".join([*told, shown.out, shown.err])
        assert said.count("the first has learning rate 0") == (1 if changes["warmup_steps"] else 0)
        told.clear()


@pytest.mark.parametrize(
    ("of", "data"),
    [
        ("trainer", {"files": ["BAD"]}),
        ("plain", {"files": ["BAD"], "cache": False}),
        ("trainer", {"files": ["GOOD"], "held_out": "BAD"}),
        ("trainer", {"sources": [{"files": "GOOD", "weight": 0.5}, {"files": "BAD", "weight": 0.5}]}),
        ("trainer", {"files": ["GOOD", "BAD"], "eval_share": 0.1}),
    ],
)
def test_bad_rows_are_told_before_the_weights_are_loaded(
    of: str, data: dict[str, Any], tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far down they stand."""
    letters = itertools.product("abcdefghijkl", repeat=3)
    rows = [{"prompt": " ".join(word), "completion": "yes"} for word in letters]
    place = tmp_path / "bad.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "completion": ""}]))
    named = json.dumps(data).replace("BAD", str(place)).replace("GOOD", str(tree["data"]))
    tree |= {"data": json.loads(named), "engine": of}
    monkeypatch.setattr(start_module, "load_model", lambda *args, **kwargs: pytest.fail("the weights were loaded"))
    with pytest.raises(DataError, match=r"1 of [\d,]+ rows cannot be trained on"):
        run(recipe_from(tree), command="", say=print)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("engine", ["trainer", "plain"])
def test_rows_are_prepared_once(
    engine: str, cache: bool, tree: dict[str, Any], runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Any] = []

    def counted(data: Any, *args: Any, **options: Any) -> Any:
        prepared.append(data)
        return prepare(data, *args, **options)

    monkeypatch.setattr("honed.train.rows.ahead.prepare", counted)
    monkeypatch.setattr("honed.data.prepare.cache.prepare", counted)
    held_out = str(Path(tree["data"]).with_name("held_out.jsonl"))
    Path(held_out).write_bytes(Path(tree["data"]).read_bytes())
    runner(tree | {"engine": engine, "data": {"files": [tree["data"]], "held_out": held_out, "cache": cache}})
    assert prepared == [[tree["data"]], held_out]


def test_what_is_looked_at_first_stops_no_run_that_could_be(tree: dict[str, Any], runner: Runner) -> None:
    """Rows that are dropped when asked to, and first rows that are all too long."""
    rows = Path(tree["data"])
    long = json.dumps({"prompt": "why fox", "completion": "yes " * 300}) + "\n"
    rows.write_text('{"q": 1}\n' + long * 250 + rows.read_text())
    tree["data"] = {"files": [str(rows)], "bad_rows": "drop", "max_length": 64}
    folder = runner(tree)
    ledger = json.loads((folder / "ledger.json").read_text())
    assert ledger["rows_dropped"] == {"overlong": 250, "unknown format": 1} and ledger["rows_trained"] > 0
