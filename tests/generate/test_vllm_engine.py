"""vLLM's engine against a double of vLLM's interface: vLLM itself needs a GPU and is not run here."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from honed.errors import MissingExtraError, ModelError
from honed.generate.request import Request, complete
from honed.generate.sampling import Sampling
from honed.generate.vllm_engine import VllmEngine


@dataclass
class _Output:
    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: Any


@dataclass(kw_only=True)
class _SamplingParams:
    """The names and defaults of `vllm.SamplingParams`, as far as honed uses them; another name raises TypeError."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16


@dataclass
class _Outputs:
    outputs: list[_Output]


@dataclass
class _Double:
    """Answers each prompt with its own tokens, and keeps what it was asked."""

    asked: list[tuple[Any, Any]] = field(default_factory=list)

    def generate(self, prompts: list[Any], parameters: list[Any], *, use_tqdm: bool) -> list[_Outputs]:
        self.asked += zip(prompts, parameters, strict=True)
        ends = [("stop", None), ("stop", 7), ("stop", "END"), ("length", None)]
        return [
            _Outputs([_Output(f"{n}", prompt["prompt_token_ids"], *ends[n % 4]) for _ in range(one.n)])
            for n, (prompt, one) in enumerate(zip(prompts, parameters, strict=True))
        ]


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Double:
    made = _Double()
    module = ModuleType("vllm")
    module.LLM = lambda **options: made  # type: ignore[attr-defined]
    module.SamplingParams = _SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    (tmp_path / "config.json").write_text("{}")
    return made


def test_requests_reach_vllm_and_come_back(double: _Double, tmp_path: Path) -> None:
    sampling = Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    shared: dict[str, Any] = {"stop_ids": frozenset({7, 2}), "stop_strings": ("END",), "max_new_tokens": 9}
    requests = [Request(prompt_ids=[n, 4], sampling=sampling, seed=3, answers=2, first=1, **shared) for n in range(4)]
    found = complete(VllmEngine(str(tmp_path)), requests)
    assert [[one.reason for one in answers] for answers in found] == [
        ["stop"] * 2, ["stop"] * 2, ["stop_string"] * 2, ["length"] * 2,
    ]  # fmt: skip
    assert [answers[0].ids for answers in found] == [(n, 4) for n in range(4)]
    assert double.asked[1] == (
        {"prompt_token_ids": [1, 4]},
        _SamplingParams(
            n=2, temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2, seed=4,
            max_tokens=9, stop=["END"], stop_token_ids=[2, 7],
        ),
    )  # fmt: skip


def test_without_vllm_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'honed\[vllm\]'"):
        VllmEngine("smollm2-135m-instruct")


@pytest.mark.usefixtures("double")
def test_an_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").rename(tmp_path / "adapter_config.json")
    with pytest.raises(ModelError, match="merge"):
        VllmEngine(str(tmp_path))
