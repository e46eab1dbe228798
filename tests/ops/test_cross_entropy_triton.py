import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from honed.ops import cross_entropy_triton


def test_the_kernel_by_triton_s_interpreter() -> None:
    """See interpreted_kernel.py, whose failures are shown.

    Up to Triton 3.6 the interpreter reads a loop's bounds as numbers from arrays of one element. NumPy 2.4 refuses
    that, older ones warn.
    """
    pytest.importorskip("triton", reason="Triton is made for Linux on x86-64")
    if Version(version("triton")) < Version("3.7"):
        pytest.skip(f"Triton {version('triton')}'s interpreter does not work with NumPy; 3.7's does (torch >= 2.12)")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).parent / "interpreted_kernel.py"),
    ]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
@pytest.mark.parametrize("pointer", ["*fp32", "*bf16", "*fp16"])
def test_it_compiles_for(pointer: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To machine code, by the assembler that Triton brings: no GPU is needed. Aligned rows are read 16 bytes a load."""
    pytest.importorskip("triton", reason="Triton is made for Linux on x86-64")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from honed.ops.cross_entropy_kernel import score_row

    pointers = {"logits_ptr": pointer, "targets_ptr": "*i64", "correct_ptr": "*i1"}
    constants = {
        "CAPPED": True,
        "SMOOTHED": True,
        "ENTROPY": True,
        "GRADIENT": True,
        "BLOCK": cross_entropy_triton.BLOCK,
    }
    whole = {"stride": "i32", "V": "i32"}
    names = score_row.arg_names
    default = {name: "*fp32" if name.endswith("_ptr") else "fp32" for name in names}
    signature = default | pointers | whole | dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in ("logits_ptr", *whole)}
    source = ASTSource(
        score_row, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
    )
    made = compile(source, target=GPUTarget("cuda", capability, 32), options=cross_entropy_triton.LAUNCH)
    assert made.asm["cubin"] and "ld.global.v4.b32" in made.asm["ptx"]


def test_a_trial_without_memory_says_nothing_about_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cross_entropy_triton, "score", full)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            cross_entropy_triton._works(torch.device("cpu"), torch.float32)


def test_on_a_cpu_plain_torch_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not cross_entropy_triton.can_score(torch.randn(3, 8))
