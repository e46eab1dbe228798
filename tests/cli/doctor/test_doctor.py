"""`honed doctor`: what it measures is so, faults are told with their mend, and only what stops honed gives status 1."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.cli.doctor import doctor, facts
from honed.cli.doctor.facts import Device, Facts, Package, Place, packages, place, requires_of
from honed.cli.doctor.rules import findings
from honed.model.device import copy_speed, matmul_speed

Honed = Callable[..., Any]

CPU = Device(kind="cpu", name="a processor", threads=4, tflops={"float32": 0.1}, copy_gb_per_second=10.0)
H100 = Device(kind="cuda", name="a card", threads=4, memory_gb=80.0, memory_free_gb=79.0)
SOUND = Facts(
    python="3.11.0",
    system="Linux x86_64",
    packages=(Package(name="torch", version="2.13.0", wanted=">=2.11", fits=True),),
    import_fault="",
    device=CPU,
    cores=4,
    memory_gb=32.0,
    memory_free_gb=16.0,
    shared_memory_gb=8.0,
    places=(Place(role="cache", path="/c", free_gb=9.0), Place(role="output", path="/o", free_gb=9.0)),
    encoding="utf-8",
    can_fork=True,
    settings={},
    default_model_fault="",
)


def with_package(**changes: Any) -> dict[str, Any]:
    return {"packages": (dataclasses.replace(SOUND.packages[0], **changes),)}


def with_device(device: Device = CPU, **changes: Any) -> dict[str, Any]:
    return {"device": dataclasses.replace(device, **changes)}


def with_place(role: str, **changes: Any) -> dict[str, Any]:
    return {"places": (dataclasses.replace(Place(role=role, path="/p", free_gb=9.0), **changes),)}


def test_nothing_to_say_of_a_sound_machine() -> None:
    assert findings(SOUND) == []


@pytest.mark.parametrize(
    ("changes", "says", "fix"),
    [
        (with_package(version=None, fits=False), "needs torch>=2.11, and it is absent", "pip install 'torch>=2.11'"),
        (with_package(version="2.1", fits=False), "2.1 is installed", "pip install 'torch>=2.11'"),
        ({"import_fault": "torch cannot be imported: OSError: x", "device": None}, "OSError", "--force-reinstall"),
        (with_place("cache", fault="Permission denied"), "/p cannot be written: Permission denied", "HONED_CACHE"),
    ],
)
def test_what_stops_honed(changes: dict[str, Any], says: str, fix: str) -> None:
    [finding] = findings(dataclasses.replace(SOUND, **changes))
    assert finding.stops
    assert says in finding.what and fix in finding.fix


@pytest.mark.parametrize(
    ("changes", "says", "fix"),
    [
        ({"packages": ()}, "not installed", "pip install -e ."),
        (with_package(version="0.1", fits=False, extra="quant"), "0.1 is installed", "pip install 'torch>=2.11'"),
        (with_place("output", fault="Read-only file system"), "Read-only", "output=FOLDER"),
        (with_place("cache", free_gb=0.5), "0.50 GB are free", "HONED_CACHE"),
        (with_device(cuda_fault="the driver is too old (found 11040)"), "driver is too old", "newer driver"),
        (with_device(H100, has_bfloat16=False), "no bfloat16", "fp16=true"),
        (with_device(H100, memory_free_gb=10.0), "hold 70.0 of", "nvidia-smi"),
        (with_device(threads=64), "64 threads, and this process may use 4 cores", "OMP_NUM_THREADS=4"),
        (with_device(threads=1), "1 of 4 cores", "OMP_NUM_THREADS=4"),
        ({"settings": {"TOKENIZERS_PARALLELISM": "false"}}, "one core", "unset TOKENIZERS_PARALLELISM"),
        ({"encoding": "ANSI_X3.4-1968"}, "ANSI_X3.4-1968", "PYTHONUTF8=1"),
        ({"can_fork": False}, "forked", "__main__"),
        ({"shared_memory_gb": 0.06}, "/dev/shm", "--shm-size"),
        ({"memory_free_gb": 0.5}, "0.5 GB of memory", "end other programs"),
    ],
)
def test_what_only_slows_or_limits(changes: dict[str, Any], says: str, fix: str) -> None:
    [finding] = findings(dataclasses.replace(SOUND, **changes))
    assert not finding.stops
    assert says in finding.what and fix in finding.fix


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf_8"])
def test_names_of_utf_8(encoding: str) -> None:
    assert findings(dataclasses.replace(SOUND, encoding=encoding)) == []


def test_an_absent_extra_is_no_fault_and_has_its_line() -> None:
    extra = Package(name="bitsandbytes", version=None, wanted=">=0.49", fits=False, extra="quant")
    sound = dataclasses.replace(SOUND, packages=(*SOUND.packages, extra))
    assert findings(sound) == []
    assert any("pip install 'honed[quant]'" in line for line in doctor.as_text(sound, []))


def test_packages_are_held_against_what_is_installed() -> None:
    asked = [
        "torch>=2",
        "peft>=999",
        "no-such-thing>=1; extra == 'vision'",
        "ruff; extra == 'dev'",
        "tqdm; python_version < '3'",
    ]
    found = {package.name: package for package in packages(asked)}
    assert set(found) == {"torch", "peft", "no-such-thing"}
    assert (found["torch"].version, found["torch"].fits) == (version("torch"), True)
    assert found["peft"].version == version("peft") and not found["peft"].fits
    assert (found["no-such-thing"].version, found["no-such-thing"].extra) == (None, "vision")


def test_nothing_is_left_in_a_folder_that_was_looked_at(tmp_path: Path) -> None:
    looked = place("cache", tmp_path / "not" / "there" / "yet")
    assert looked.fault == ""
    assert looked.free_gb == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, abs=1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert place("cache", tmp_path / "file" / "honed").fault


def test_cores_are_those_of_the_process_and_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_words", lambda file: "150000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(facts.sys, "platform", "linux")
    assert facts.cores() == 2
    monkeypatch.setattr(facts, "_words", lambda file: "max 100000")
    assert facts.cores() == 8


def test_an_unused_card_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in facts._cuda_fault(torch, [])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    said = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).\nmore"
    assert facts._cuda_fault(torch, [said]).endswith("(found version 11040).")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert facts._cuda_fault(torch, []) == ""


def test_what_the_device_cannot_do_is_left_out() -> None:
    def refuse() -> float:
        raise RuntimeError("not implemented for 'Half'")

    assert facts._measured(refuse) == 0.0


def test_speeds_are_of_the_work_that_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on a second at every look: one product or one copy takes exactly that."""
    from honed.model import device

    ticks = iter(range(10**6))
    monkeypatch.setattr(device.time, "perf_counter", lambda: float(next(ticks)))
    cpu = torch.device("cpu")
    assert matmul_speed(cpu, torch.float32) == 2 * 256**3
    assert copy_speed(cpu, n_bytes=1 << 12) == 2 * (1 << 12)


@pytest.mark.parametrize("stops", [False, True])
def test_status_and_json(stops: bool, honed: Honed, monkeypatch: pytest.MonkeyPatch) -> None:
    there = dataclasses.replace(SOUND, **with_package(version=None, fits=False)) if stops else SOUND
    monkeypatch.setattr(facts, "gather", lambda: there)
    shown = honed("doctor", "--json")
    record = json.loads(shown.out)
    assert shown.status == int(stops)
    assert record["works"] is not stops
    assert len(record["findings"]) == int(stops)
    assert record["device"]["tflops"] == {"float32": 0.1}
    text = honed("doctor")
    assert text.status == int(stops)
    assert ("STOPS" in text.out) is stops


def test_this_very_machine(honed: Honed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HONED_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shown = honed("doctor", "--json")
    record = json.loads(shown.out)
    assert record["device"]["tflops"]["float32"] > 0 and record["device"]["copy_gb_per_second"] > 0
    assert record["device"]["threads"] == torch.get_num_threads()
    if requires_of("honed") is None:  # a checkout on the path that nobody installed
        assert any("not installed" in finding["what"] for finding in record["findings"])
    else:
        assert {package["name"] for package in record["packages"]} >= {"torch", "transformers", "peft"}
    assert record["works"]
    assert record["places"][0]["path"] == str(tmp_path)
    assert "hf_secret" not in shown.out
