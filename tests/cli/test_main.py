"""The parser: help without heavy imports, versions, wrong verbs, and arguments in any order."""

from __future__ import annotations

import subprocess
import sys

import pytest

from honed import __version__
from honed.cli.main import VERBS, main, read_arguments

HEAVY = {"torch", "transformers", "numpy", "peft", "accelerate", "datasets", "tokenizers"}
NAMES = [verb.__name__.rpartition(".")[2] for verb in VERBS]
HELP = f"""
import sys
from honed.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("loaded:", *sorted({HEAVY} & sys.modules.keys()))
"""


@pytest.mark.parametrize("verb", [None, *NAMES])
def test_help_is_light(verb: str | None) -> None:
    command = [sys.executable, "-c", HELP, *([verb] if verb else []), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: honed")
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert all(f"\n    {name} " in shown for name in NAMES)


def test_without_a_verb_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert not shown.out and all(f"\n    {name} " in shown.err for name in NAMES)


def test_module_tells_its_version() -> None:
    command = [sys.executable, "-m", "honed", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == f"honed {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["train", "--bogus"],
        ["train", "a=1", "--overwrite", "--bogus"],
        ["generate", "folder", "question", "more"],
        ["generate", "folder", "question", "--max-new-tokens", "0"],
        ["generate", "folder", "question", "--temperature", "-1"],
        ["generate", "folder", "question", "--temperature", "nan"],
        ["generate", "folder", "question", "--temperature", "inf"],
        ["chat", "folder", "--seed", "-1"],
    ],
)
def test_wrong_usage_ends_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "r.yaml", "a=1", "b=2", "--model", "m"],
        ["train", "--model", "m", "r.yaml", "a=1", "b=2"],
        ["train", "r.yaml", "--model", "m", "a=1", "b=2"],
        ["train", "r.yaml", "a=1", "--model", "m", "b=2"],
    ],
)
def test_options_may_stand_anywhere(arguments: list[str]) -> None:
    args = read_arguments(arguments)
    assert (args.items, args.model) == (["r.yaml", "a=1", "b=2"], "m")


def test_a_lack_of_memory_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it happens: a micro-batch is cut in two, but the optimizer's states and a model cannot be."""
    import torch

    def run(error: RuntimeError) -> None:
        raise error

    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
    monkeypatch.setattr("honed.cli.demo.run", lambda *_: run(full))
    assert main(["demo"]) == 2
    told = capsys.readouterr().err
    assert "not enough memory" in told and "2.00 GiB" in told and "honed plan" in told and "Traceback" not in told
    monkeypatch.setattr("honed.cli.demo.run", lambda *_: run(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["demo"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_an_end_from_outside_is_no_traceback(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    def run(args: object, command: str) -> int:
        raise error

    written = io.StringIO()
    written.close = lambda: None  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr("honed.cli.demo.run", run)
    assert main(["demo"]) == (130 if error is KeyboardInterrupt else 0)
    assert ("stopped" in written.getvalue()) is (error is KeyboardInterrupt)


def test_the_command_is_kept_as_a_shell_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    kept: list[str] = []

    def run(args: object, command: str) -> int:
        kept.append(command)
        return 0

    monkeypatch.setattr("honed.cli.demo.run", run)
    main(["demo", "output=my runs/it's"])
    assert shlex.split(kept[0]) == ["honed", "demo", "output=my runs/it's"]
