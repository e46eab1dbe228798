"""SFTTrainer among other libraries: the Hub, Liger, Unsloth, torch's switches; and what it leaves alone."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from honed.errors import RecipeError, RunError
from honed.model.adapters.adapters import lora_config
from honed.train.options import rules
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

Rows = list[dict[str, Any]]
Make = Callable[..., Any]


# --- the Hub ---------------------------------------------------------------------------------------------------------


class Hub:
    """What Trainer asks of the Hub, with what was asked."""

    def __init__(self) -> None:
        self.created: list[str] = []
        self.uploaded: list[dict[str, Any]] = []

    def create_repo(self, name: str, **options: Any) -> Any:
        self.created.append(name)
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, *, folder_path: str, run_as_future: bool = False, **options: Any) -> Any:
        files = {file.name for file in Path(folder_path).iterdir()}
        card = (Path(folder_path) / "README.md").read_text("utf-8") if "README.md" in files else ""
        self.uploaded.append({**options, "files": files, "card": card})
        done: Future[str] = Future()
        done.set_result("https://hub/commit")
        return done if run_as_future else done.result()


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # peft asks the Hub for the base model
@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_is_pushed_with_its_tokenizer_and_card(
    adapter: bool, make: Make, chat_rows: Rows, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(sys.modules["transformers.trainer"], "hf_api", lambda: hub)
    options = {"peft_config": lora_config(r=2)} if adapter else {}
    trainer = make(chat_rows, model=tiny_model(), max_steps=1, hub_model_id="tiny", hub_token="t", **options)
    trainer.train()
    assert trainer.push_to_hub(commit_message="done", dataset_name="trl-lib/Capybara") == "https://hub/commit"
    [upload] = hub.uploaded
    assert hub.created == ["tiny"] and upload["repo_id"] == "me/tiny" and upload["commit_message"] == "done"
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    assert {weights, "tokenizer.json", "README.md"} <= upload["files"]
    assert "honed" in upload["card"] and "sft" in upload["card"] and "- trl-lib/Capybara" in upload["card"]


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
@pytest.mark.parametrize("adapter", [False, True])
def test_every_card_has_the_tags(
    adapter: bool, make: Make, chat_rows: Rows, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    options = {"peft_config": lora_config(r=2)} if adapter else {}
    trainer = make(chat_rows, model=tiny_model(), max_steps=1, save_strategy="steps", save_steps=1, **options)
    assert trainer.model.model_tags == ["honed", "sft"]
    trainer.train()
    if adapter:  # peft writes a card for each adapter
        tags = ModelCard.load(tmp_path / "out" / "checkpoint-1" / "README.md").data.tags
        assert {"honed", "sft", "lora"} <= set(tags)
    trainer.save_model()
    given = ["mine"]
    trainer.create_model_card("tiny", "trl-lib/Capybara", given)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {"mine", "honed", "sft"} <= set(card.data.tags) and given == ["mine"]
    assert card.data.datasets == ["trl-lib/Capybara"] and "# tiny" in card.text
    assert card.data.library_name == ("peft" if adapter else "transformers")


class NoHub(Hub):
    """One that does not answer: at all, or once the upload begins."""

    def __init__(self, *, creates: bool) -> None:
        super().__init__()
        self.creates = creates

    def create_repo(self, name: str, **options: Any) -> Any:
        if not self.creates:
            raise ConnectionError("no route to the Hub")
        return super().create_repo(name, **options)

    def upload_folder(self, *, folder_path: str, run_as_future: bool = False, **options: Any) -> Any:
        raise ConnectionError("no route to the Hub")


@pytest.mark.parametrize("creates", [False, True])
def test_without_a_network_what_was_trained_is_saved_first(
    creates: bool, make: Make, chat_rows: Rows, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["transformers.trainer"], "hf_api", lambda: NoHub(creates=creates))
    trainer = make(chat_rows, model=tiny_model(), max_steps=1, hub_model_id="tiny")
    trainer.train()
    with pytest.raises(RunError, match=r"(?s)is saved in .*no route to the Hub.*hf upload (me/)?tiny") as told:
        trainer.push_to_hub()
    assert trainer.args.output_dir in str(told.value)
    saved = load_file(Path(trainer.args.output_dir) / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in trainer.model.state_dict().items() if name in saved)


def test_push_to_hub_without_a_network_is_told_before_training(
    make: Make, chat_rows: Rows, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["transformers.trainer"], "hf_api", lambda: NoHub(creates=False))
    with pytest.raises(RunError, match=r"(?s)me/tiny cannot be made on the Hub.*without push_to_hub"):
        make(chat_rows, model=tiny_model(), max_steps=1, hub_model_id="me/tiny", push_to_hub=True)


def test_no_pickle_of_the_arguments_holds_a_secret(
    make: Make, chat_rows: Rows, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each is uploaded as it stands, with the token of the arguments as they were given."""
    hub, pickles = Hub(), []
    save = torch.save

    def kept(content: Any, place: Any, *args: Any, **kwargs: Any) -> None:
        save(content, place, *args, **kwargs)
        pickles.extend([Path(place).read_bytes()] if str(place).endswith("training_args.bin") else [])

    monkeypatch.setattr(sys.modules["transformers.trainer"], "hf_api", lambda: hub)
    monkeypatch.setattr(torch, "save", kept)
    trainer = make(
        chat_rows, model=tiny_model(), max_steps=1, hub_model_id="tiny", hub_token="my-own-word", push_to_hub=True,
        hub_strategy="every_save", hub_always_push=True, save_strategy="steps", save_steps=1, hub_private_repo=True,
        model_init_kwargs={"token": "my-own-word", "revision": "main"}, run_name="https://me:my-own-word@host/x",
    )  # fmt: skip
    given = trainer.args
    monkeypatch.setattr(trainer, "push_in_progress", None)
    trainer.train()
    assert [upload["token"] for upload in hub.uploaded] == ["my-own-word"] * len(hub.uploaded) and hub.uploaded
    assert len(pickles) >= 2 and not any(b"my-own-word" in content for content in pickles)
    assert trainer.args is given and given.hub_token == "my-own-word" and type(given) is SFTConfig
    loaded = torch.load(tmp_path / "out" / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert type(loaded) is SFTConfig and loaded.hub_token is None
    assert loaded.model_init_kwargs == {"token": "<masked>", "revision": "main"}
    same = {key: value for key, value in given.to_dict().items() if key not in {"hub_token", "model_init_kwargs"}}
    found = loaded.to_dict()
    assert {key for key in same if found[key] != same[key]} == {"run_name"}


# --- Liger and Unsloth -----------------------------------------------------------------------------------------------


@pytest.fixture
def liger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A double of liger-kernel, which needs Triton: an installed package that notes what it is asked to replace."""
    package, info = tmp_path / "site" / "liger_kernel", tmp_path / "site" / "liger_kernel-0.9.0.dist-info"
    for place in (package / "transformers", info):
        place.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "transformers" / "__init__.py").write_text(
        "calls = []\n"
        "def _apply_liger_kernel_to_instance(model, **kernels):\n"
        "    calls.append({'model': type(model).__name__, **kernels})\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: liger-kernel\nVersion: 0.9.0\n")
    (info / "RECORD").write_text("liger_kernel/__init__.py,,\n")
    (info / "top_level.txt").write_text("liger_kernel\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(sys.modules["transformers.integrations.liger"], "is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(rules, "runs_triton", lambda args: True)
    yield importlib.import_module("liger_kernel.transformers").calls
    for name in [name for name in sys.modules if name.partition(".")[0] == "liger_kernel"]:
        del sys.modules[name]


@pytest.mark.parametrize("adapter", [False, True])
def test_liger_replaces_layers_and_leaves_the_head(
    adapter: bool, liger: list[dict[str, Any]], make: Make, chat_rows: Rows
) -> None:
    given = {"rope": True, "swiglu": False}
    options = {"peft_config": lora_config(r=2)} if adapter else {}
    trainer = make(
        chat_rows, use_liger_kernel=True, liger_kernel_config=given, max_steps=1, eval_dataset=chat_rows, **options
    )
    trainer.train()
    assert liger == [
        {"model": "LlamaForCausalLM", **given, "fused_linear_cross_entropy": False, "cross_entropy": False}
    ]
    assert given == {"rope": True, "swiglu": False} and trainer.seams.scoring
    assert trainer.evaluate()["eval_loss"] > 0  # for which Trainer would tell the model to leave out its logits


def test_liger_is_refused_where_it_is_not_installed(make: Make, chat_rows: Rows) -> None:
    with pytest.raises(RecipeError, match="pip install liger-kernel"):
        make(chat_rows, use_liger_kernel=True)


class FastLanguageModel:
    """A double of Unsloth's class: its public interface, and a forward of its own that ignores other attention."""

    @staticmethod
    def from_pretrained(*, model_name: str, max_seq_length: int, dtype: Any, load_in_4bit: bool) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(model_name, attn_implementation="eager")
        model.max_seq_length = max_seq_length
        own = model.model.forward

        def fast_forward(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            model.set_attn_implementation("eager")  # fixed when the model was patched
            for key in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"):
                kwargs.pop(key, None)
            return own(*args, **kwargs)

        model.model.forward = fast_forward
        return model, AutoTokenizer.from_pretrained(model_name)

    @staticmethod
    def get_peft_model(model: Any, *, use_gradient_checkpointing: Any, random_state: int, **lora: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(random_state)
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))


def test_a_model_of_unsloth_is_trained_its_own_way(
    folder: Callable[..., str], quick: dict[str, Any], chat_rows: Rows
) -> None:
    """Padded, since its attention is not ours to choose; the loss is that of the plain model."""
    name = folder()
    model, _ = FastLanguageModel.from_pretrained(model_name=name, max_seq_length=128, dtype=None, load_in_4bit=True)
    lora = {"r": 2, "lora_alpha": 4, "lora_dropout": 0, "bias": "none", "target_modules": ["q_proj", "v_proj"]}
    model = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=True, random_state=3407, **lora)
    fast = SFTTrainer(model=model, args=SFTConfig(**quick, max_steps=1), train_dataset=chat_rows)
    plain = SFTTrainer(name, args=SFTConfig(**quick, max_steps=1), train_dataset=chat_rows)
    for trainer in (fast, plain):
        trainer.train()
    assert not fast.seams.flat and plain.seams.flat
    losses = [trainer.state.log_history[0]["loss"] for trainer in (fast, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- torch's switches ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*sdp_kernel.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*sdp_kernel.*:DeprecationWarning")
def test_the_old_way_to_choose_flash_attention_does_no_harm(make: Make, chat_rows: Rows) -> None:
    plain, switched = make(chat_rows, max_steps=2), make(chat_rows, max_steps=2)
    plain.train()
    with torch.backends.cuda.sdp_kernel(enable_flash=True, enable_math=False, enable_mem_efficient=False):
        switched.train()
    for a, b in zip(plain.model.parameters(), switched.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_weight(
    adapter: bool, reentrant: bool, make: Make, chat_rows: Rows, tiny_model: Callable[..., Any]
) -> None:
    weights = []
    for on in (False, True):
        options: dict[str, Any] = {"peft_config": lora_config(r=2)} if adapter else {}
        if on:
            options["gradient_checkpointing_kwargs"] = {"use_reentrant": reentrant}
        trainer = make(chat_rows, gradient_checkpointing=on, max_steps=2, **options)
        trainer.train()
        weights.append([p.detach() for p in trainer.model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


# --- what stays as it was --------------------------------------------------------------------------------------------


def test_the_callers_objects_stay_as_they_were(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, quick: dict[str, Any], chat_rows: Rows
) -> None:
    """Arguments, adapter, tokenizer, data and the model's configuration, through every step of a run."""
    args = SFTConfig(
        **quick, max_steps=1, packing=True, eos_token="<|endoftext|>", eval_strategy="steps", eval_steps=1,
        neftune_noise_alpha=5.0, model_init_kwargs={"dtype": "auto"},
    )  # fmt: skip
    peft_config, dataset, rows = lora_config(r=2), Dataset.from_list(chat_rows), copy.deepcopy(chat_rows)
    model = tiny_model(eos_token_id=0)

    def state() -> dict[str, Any]:
        return copy.deepcopy({
            "args": args.to_dict(), "adapter": peft_config.to_dict(), "rows": rows, "data": dataset.to_list(),
            "features": dataset.features, "format": dataset.format, "config": model.config.to_dict(),
            "attention": model.config._attn_implementation, "head": type(model.get_output_embeddings()),
            "vocabulary": tiny_tokenizer.get_vocab(), "special": tiny_tokenizer.special_tokens_map,
            "template": tiny_tokenizer.chat_template, "sides": tiny_tokenizer.padding_side,
            "modes": [module.training for module in model.modules()],
        })  # fmt: skip

    before = state()
    trainer = SFTTrainer(
        model, args=args, train_dataset=dataset, eval_dataset=rows, processing_class=tiny_tokenizer,
        peft_config=peft_config,
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    trainer.predict(rows[:2])
    after = state()
    before.pop("modes"), after.pop("modes")  # a trained model is in training or evaluation mode, as Trainer left it
    assert {key: after[key] for key in before if after[key] != before[key]} == {}


def test_the_bar_is_closed_when_training_breaks_off(make: Make, chat_rows: Rows) -> None:
    class Breaks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("broken off")

    trainer = make(chat_rows, disable_tqdm=False, max_steps=3, neftune_noise_alpha=5.0)
    trainer.add_callback(Breaks())
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.train()
    assert trainer._progress._bar is None
    assert trainer.model.config._attn_implementation != "honed" and trainer._head is None
    assert type(trainer.model.get_output_embeddings()) is torch.nn.Linear


# --- no waiting for the device ---------------------------------------------------------------------------------------

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::item"}


class Waits(TorchDispatchMode):
    """Notes operations for whose result the host would wait for a GPU, and the line of honed's that runs them.

    `.item()`, `bool(tensor)` and `int(tensor)` all end in `_local_scalar_dense`; an index by a mask asks how many are
    set. Those in which transformers' own code stands nearer (it looks for a NaN in every loss) are not honed's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        if name in WAITS or (name.startswith("aten::index") and _by_mask(args)):
            self.found += [f"{name} {line}"] if (line := _line_of_honed()) else []
        return function(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)


def _line_of_honed() -> str | None:
    frame: Any = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if "/honed/" in path:
            return f"{path.rpartition('/honed/')[2]}:{frame.f_lineno}"
        if "/transformers/" in path or "/accelerate/" in path:
            return None
        frame = frame.f_back
    return None


@contextmanager
def per_step() -> Iterator[list[list[str]]]:
    """The waits inside each `training_step` and `_get_num_items_in_batch`."""
    steps: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("training_step", "_get_num_items_in_batch"):
            patch.setattr(SFTTrainer, name, _watched(getattr(SFTTrainer, name), steps))
        yield steps


def _watched(method: Any, steps: list[list[str]]) -> Any:
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        with Waits() as waits:
            result = method(self, *args, **kwargs)
        steps.append(waits.found)
        return result

    return watched


def test_the_watch_sees_what_it_is_for() -> None:
    from honed.train.metrics import StepMetrics

    metrics = StepMetrics(torch.device("cpu"))
    metrics._scored = 1
    with Waits() as waits:
        torch.ones(3)[torch.tensor([True, False, True])]
        bool(torch.ones(()))
    assert waits.found == [], "not honed's"
    with pytest.MonkeyPatch.context() as patch, Waits() as waits:
        patch.setattr(sys.modules[__name__], "_line_of_honed", lambda: "here")
        torch.ones(3)[torch.tensor([True, False, True])]
        bool(torch.ones(()))
    assert [name.split()[0] for name in waits.found] == ["aten::index", "aten::_local_scalar_dense"]


def test_no_step_waits_for_the_device(make: Make, chat_rows: Rows) -> None:
    """Numbers are read when they are logged only. What is left are the masks by which the head picks trained positions.

    A step of a GPU would wait for each index by a mask, so there may be no more of them than there are now.
    """
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 100}
    trainer = make(chat_rows, neftune_noise_alpha=5.0, **options)
    with per_step() as steps:
        trainer.train()
    assert len(steps) == 27, "18 micro-batches in 9 steps"
    assert {wait.rpartition(":")[0] for found in steps for wait in found} <= {
        "aten::_local_scalar_dense ops/linear_cross_entropy.py",  # asks on a CPU only, where nothing waits
    }
    assert max(map(len, steps)) <= 3
