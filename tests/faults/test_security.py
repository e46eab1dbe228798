"""Models, names and recipes that are not to be trusted, and secrets that are not to be told."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_tools import Shown, assert_mendable

import honed
from honed.model.load.load import load_model, load_tokenizer
from honed.report.run.report import write_run_report
from honed.train.run_folder.secrets import MASK

HOSTILE = "<script>document.title='hacked'</script>"
HUB = "hf_" + "aB3" * 11
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
open({trace!r}, "w").close()
class Own(LlamaConfig):
    model_type = "nonesuch"
class Model(LlamaForCausalLM):
    config_class = Own
"""


@pytest.fixture
def carrier(model_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A model that brings code of its own, and the file which that code would leave."""
    trace = tmp_path / "the code has run"
    code = CODE.format(trace=str(trace))
    (model_folder / "own.py").write_text(code)
    config = json.loads((model_folder / "config.json").read_text())
    config |= {"model_type": "nonesuch", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (model_folder / "config.json").write_text(json.dumps(config))
    return model_folder, trace


def test_code_of_a_model_is_not_run(train: Callable[..., Shown], carrier: tuple[Path, Path]) -> None:
    shown = train()
    assert_mendable(shown, "could not be loaded", "fix: look at that code, then set trust_remote_code=True")
    assert not carrier[1].exists()


def test_code_of_a_tokenizer_is_not_run(model_folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "the code has run"
    (model_folder / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    file = model_folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["own.Own", None]}}
    file.write_text(json.dumps(config))
    load_tokenizer(str(model_folder))  # the files that stand beside it do
    assert not trace.exists()


def test_code_is_run_where_it_is_asked_for(carrier: tuple[Path, Path]) -> None:
    """Else the test above would pass whatever stood in the folder."""
    import torch

    load_model(str(carrier[0]), device=torch.device("cpu"), trust_remote_code=True)
    assert carrier[1].exists()


def test_secrets_are_not_written_down(train: Callable[..., Shown], run: Path) -> None:
    shown = train(
        f"hub_token={HUB}", "model_init_kwargs={token: my-own-word}", "run_name=https://me:hunter2@host/x", "lora.r=4"
    )
    assert shown.status == 0, shown.err
    told = {"said": (shown.out + shown.err).encode()} | {f.name: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    assert {"recipe.yaml", "run.json", "report.html"} <= set(told)
    for secret in (HUB, "my-own-word", "hunter2"):
        assert [name for name, content in told.items() if secret.encode() in content] == []
    assert MASK in (run / "recipe.yaml").read_text() and "r: 4" in (run / "recipe.yaml").read_text()


def test_a_masked_recipe_is_known_again(train: Callable[..., Shown], run: Path) -> None:
    assert train(f"hub_token={HUB}").status == 0
    assert "finished run of this recipe" in train(f"hub_token={HUB}").err


def test_names_are_no_markup_in_the_report(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "_")
    folder.mkdir()
    facts = {"status": HOSTILE, "model": HOSTILE, "honed_command": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    ledger = {"rows_in": 1, "rows_trained": 1, "notes": [HOSTILE], "rows_dropped": {HOSTILE: 0}}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "ledger.json").write_text(json.dumps(ledger))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, HOSTILE: 2.0}) + "\n")
    (folder / "recipe.yaml").write_text(f"model: {HOSTILE}\n")
    write_run_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "document.title" in page, "the names are shown"
    assert not re.search(r"<script>\s*document\.title", page)
    assert len(re.findall(r"<script", page)) == page.count("</script>")


def test_a_template_cannot_reach_the_system(train: Callable[..., Shown], model_folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "the template has run"
    escape = f"{{{{ cycler.__init__.__globals__.os.mknod({str(trace)!r}) }}}}"
    template = model_folder / "chat_template.jinja"
    template.write_text(escape + template.read_text())
    assert_mendable(train())
    assert not trace.exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.system"])
def test_a_recipe_is_data(tag: str, tmp_path: Path, train: Callable[..., Any]) -> None:
    from honed.cli.main import main

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {tag} ['{tmp_path / 'made'}']\n")
    assert main(["train", str(recipe)]) == 2
    assert not (tmp_path / "made").exists()


def test_nothing_serves_other_machines() -> None:
    """No module is a server, and the one that opens a port (a free one, for a proof's processes) does so for this
    machine only."""
    servers = {"socketserver", "http", "asyncio", "xmlrpc", "wsgiref", "uvicorn", "aiohttp", "tornado", "gradio"}
    root = Path(honed.__file__).parent
    sockets = []
    for path in root.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert servers.isdisjoint(module.partition(".")[0] for module in modules), path
        sockets += re.findall(r"\b(?:from socket import .*|socket\.(?!gethostname\b)\w+.*)", source)
    assert sockets == ['socket.create_server(("127.0.0.1", 0)) as server:']
