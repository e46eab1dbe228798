"""TrlParser: a flag beats the file, the file beats the default."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from honed.errors import RecipeError
from honed.train.options.config import SFTConfig
from honed.train.options.model_config import ModelConfig
from honed.train.options.script_arguments import ScriptArguments, SFTScriptArguments, TrlParser


@dataclass
class Needs:
    arg1: int
    arg2: str = "alpha"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(text: str) -> str:
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "config.yaml")

    return write_file


@pytest.mark.parametrize("joined", [True, False])
def test_flag_over_file_over_default(joined: bool, write: Any) -> None:
    path = write("arg1: 23\narg2: file\n")
    flags = [f"--config={path}"] if joined else ["--config", path]
    assert TrlParser(Needs).parse_args_and_config(flags) == (Needs(arg1=23, arg2="file"),)
    assert TrlParser([Needs]).parse_args_and_config([*flags, "--arg1", "5"]) == (Needs(arg1=5, arg2="file"),)
    assert TrlParser([Needs]).parse_args_and_config(["--arg1", "5"]) == (Needs(arg1=5, arg2="alpha"),)


def test_the_command_line_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", "--arg1", "7"])
    assert TrlParser(Needs).parse_args_and_config() == (Needs(arg1=7),)


def test_env(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HONED_TEST_VARIABLE", raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ})
    TrlParser(Needs).parse_args_and_config(["--config", write("arg1: 1\nenv:\n  HONED_TEST_VARIABLE: 3\n")])
    assert os.environ["HONED_TEST_VARIABLE"] == "3"


def test_a_whole_script(write: Any, tmp_path: Path) -> None:
    """The three dataclasses of TRL's sft.py, with numbers as people write them in YAML."""
    path = write(
        "model_name_or_path: Qwen/Qwen3-0.6B\nlearning_rate: 2e-4\nuse_peft: true\n"
        "lora_target_modules: [q_proj, v_proj]\n"
        f"output_dir: {tmp_path}\nmodel_init_kwargs:\n  load_in_4bit: true\ndataset_name: data.jsonl\nuse_cpu: true\n"
    )
    script, training, model = TrlParser((ScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config(
        ["--config", path, "--lora_r", "4", "--packing", "--max_length", "77", "--report_to", "none"]
    )
    assert (script.dataset_name, script.dataset_train_split) == ("data.jsonl", "train")
    assert (training.learning_rate, training.packing, training.max_length) == (2e-4, True, 77)
    assert training.model_init_kwargs == {"load_in_4bit": True}
    assert (model.lora_r, model.use_peft, model.lora_target_modules) == (4, True, ["q_proj", "v_proj"])


@pytest.mark.parametrize(
    "words",
    [
        "--max_seq_length 77 --group_by_length True --evaluation_strategy steps --overwrite_output_dir "
        "--torch_dtype auto",
        "--max-seq-length=77 --group_by_length --evaluation_strategy=steps --overwrite_output_dir True "
        "--torch_dtype=auto --config FILE",
    ],
)
def test_names_of_older_releases(words: str, write: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the command lines and files of older scripts have them."""
    file = write("warmup_ratio: 0.1\nuse_liger: false\nsave_safetensors: true\nuse_cpu: true\nreport_to: none\n")
    flags = [*words.replace("FILE", file).split(), "--output_dir", str(tmp_path), "--use_cpu", "--report_to", "none"]
    training, model = TrlParser((SFTConfig, ModelConfig)).parse_args_and_config(flags)
    assert (training.max_length, training.train_sampling_strategy, model.dtype) == (77, "group_by_length", "auto")
    assert training.eval_strategy == "steps" and training.warmup_steps == (0.1 if "FILE" in words else 0)
    assert "max_seq_length is called max_length now." in caplog.text
    assert "overwrite_output_dir has no effect: " in caplog.text


def test_an_argument_of_ones_own_keeps_an_old_name(write: Any) -> None:
    @dataclass
    class Mine:
        max_seq_length: int = 5
        max_length: int = 6

    assert TrlParser(Mine).parse_args_and_config(["--max_seq_length", "7"]) == (Mine(max_seq_length=7),)


def test_unknown_keys(write: Any) -> None:
    path = write("arg1: 1\nother: x\n")
    with pytest.raises(RecipeError, match="--other x"):
        TrlParser(Needs).parse_args_and_config(["--config", path])
    assert TrlParser(Needs).parse_args_and_config(["--config", path], fail_with_unknown_args=False) == (Needs(arg1=1),)
    both = TrlParser(Needs).parse_args_and_config(["--config", path, "--more", "y"], return_remaining_strings=True)
    assert both == (Needs(arg1=1), ["--other", "x", "--more", "y"])
    apart = TrlParser(Needs).parse_args_and_config(
        ["--config", path, "--more", "y"], return_remaining_strings=True, separate_remaining_strings=True
    )
    assert apart == (Needs(arg1=1), ["--other", "x"], ["--more", "y"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "env: 3\n", "a: [\n", "", "arg1: 1\narg1: 2\n"])
def test_files_that_are_no_config(text: str, write: Any) -> None:
    with pytest.raises(RecipeError, match=r"config\.yaml"):
        TrlParser(Needs).parse_args_and_config(["--config", write(text)])


def test_no_file() -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        TrlParser(Needs).parse_args_and_config(["--config", "nope.yaml"])
    with pytest.raises(RecipeError, match="needs a file"):
        TrlParser(Needs).parse_args_and_config(["--config"])


def test_a_field_config_is_refused() -> None:
    @dataclass
    class Clash:
        config: str = ""

    with pytest.raises(ValueError, match="'config'"):
        TrlParser(Clash)


def test_the_script_arguments_of_older_trl_have_their_old_name() -> None:
    (script,) = TrlParser((SFTScriptArguments,)).parse_args_and_config(["--dataset_name", "rows.jsonl"])
    assert isinstance(script, ScriptArguments)
    assert (script.dataset_name, script.dataset_train_split) == ("rows.jsonl", "train")
