"""What is tried on a tiny model of a type, each against plain transformers: training, LoRA, saving, answers, planning.

The oracle computes each document alone with the unmodified model and torch's cross entropy. Nothing of honed is in it.

Shapes: L tokens of a document, V vocabulary.
"""

from __future__ import annotations

import copy
import math
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from shapes import WORDS, tiny_config
from torch import nn

CAUSAL = "AutoModelForCausalLM"
LENGTHS, PROMPT, NEW = (9, 23, 14), 4, 6
SPREAD, NOISE = 0.3, 0.1  # of matrices; of vectors around the values that they begin with
TINY = 1e-3  # of the largest gradient: smaller ones (a key's bias has none) are rounding
Rows = list[dict[str, list[int]]]
Gradients = dict[str, torch.Tensor]
Found = tuple[float, Gradients]


def make_model(kind: str) -> nn.Module:
    """Random weights, spread so wide that a leak or a lost factor shows; in float64 where the model computes in it."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(kind)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 10**6:
        raise MemoryError(f"{size:,} weights: the shape is not tiny")
    torch.manual_seed(0)
    model = spread(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    return as_wide(model, lambda model: losses(model, make_rows()))


def spread(model: nn.Module) -> nn.Module:
    """The model, its weights drawn wide."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(SPREAD * noise if parameter.ndim > 1 else parameter + NOISE * noise)
    return model


def as_wide(model: Any, run: Callable[[nn.Module], Any]) -> nn.Module:
    """The model in float64, if it runs so and does not take its softmax in float32."""
    if model.config._attn_implementation == "eager":
        return cast(nn.Module, model)
    try:
        run(copy.deepcopy(model).double())
    except RuntimeError:
        return cast(nn.Module, model)
    return cast(nn.Module, model.double())


def make_rows() -> Rows:
    """Three documents of token ids, the first tokens of each not trained."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, WORDS, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": row, "labels": [-100] * PROMPT + row[PROMPT:]} for row in ids]


def losses(model: nn.Module, rows: Rows) -> torch.Tensor:
    """Of all trained tokens, each document through the plain model alone."""
    found = []
    for row in rows:
        ids_1L = torch.tensor([row["input_ids"]])
        logits_LV = model(input_ids=ids_1L, use_cache=False).logits[0, -ids_1L.shape[1] :]
        found.append(F.cross_entropy(logits_LV[PROMPT - 1 : -1], ids_1L[0, PROMPT:], reduction="none"))
    return torch.cat(found)


def oracle(model: nn.Module, rows: Any, losses: Callable[[nn.Module, Any], torch.Tensor] = losses) -> Found:
    """The loss of one step and its gradients, by the losses of its trained tokens."""
    model = copy.deepcopy(model).train()
    loss = losses(model, rows).mean()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    pairs = zip(named, gradients, strict=True)
    return float(loss.detach()), {name: gradient for name, gradient in pairs if gradient is not None}


def step(
    model: nn.Module, rows: Any, tokenizer: Any, *, padded: bool = False, **options: Any
) -> tuple[Any, float, Gradients]:
    """One step of SFTTrainer: the trainer, the logged loss and the gradients."""
    from transformers import TrainerCallback

    from honed import SFTConfig, SFTTrainer

    caught: Gradients = {}

    class Catch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            named = kwargs["model"].named_parameters()
            caught.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    class Padded(SFTTrainer):
        """Who looks into batches gets padded ones."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(model, inputs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as place:
        settings = {
            "output_dir": place, "max_steps": 1, "per_device_train_batch_size": len(rows), "learning_rate": 1e-30,
            "optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no", "report_to": "none", "use_cpu": True,
            "disable_tqdm": True, "logging_steps": 1, "max_length": 64, "router_aux_loss_coef": 0.0, **options,
        }  # fmt: skip
        trainer = (Padded if padded else SFTTrainer)(
            copy.deepcopy(model), args=SFTConfig(**settings), train_dataset=rows, processing_class=tokenizer,
            callbacks=[Catch()],
        )  # fmt: skip
        trainer.train()
    return trainer, trainer.state.log_history[0]["loss"], caught


def distance(found: Gradients, expected: Gradients) -> float:
    """Largest relative difference of a tensor; one that only one side has counts whole."""
    scale = max(float(g.norm()) for g in expected.values())
    worst = 0.0
    for name in found.keys() | expected.keys():
        a, b = found.get(name), expected.get(name)
        apart = (a if b is None else b if a is None else a - b).norm()
        worst = max(worst, float(apart) / (float(0 if b is None else b.norm()) + TINY * scale))
    return worst if math.isfinite(worst) else math.inf


def training(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """How far each way of making batches is from the oracle, and which seams were taken."""
    rows, report = make_rows(), {}
    loss, gradients = oracle(model, rows)

    def compare(**options: Any) -> float:
        _, own_loss, own = step(model, rows, tokenizer, **options)
        return max(abs(own_loss - loss) / loss / 100, distance(own, gradients))  # the log rounds the loss

    report["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    report["batch"] = tried(compare)
    report["batch, no recomputing"] = tried(lambda: compare(gradient_checkpointing=False))
    single = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    report["one by one"] = tried(lambda: compare(**single, gradient_accumulation_steps=len(rows)))
    report["packed"] = tried(lambda: compare(packing=True))
    report["padded"] = tried(lambda: compare(padded=True))
    report["float32"] = tried(lambda: in_float32(model, tokenizer, report))
    report["with the router's balance"] = tried(
        lambda: math.isfinite(step(model, rows, tokenizer, router_aux_loss_coef=None)[1])
    )
    return report


def in_float32(model: nn.Module, tokenizer: Any, report: dict[str, Any]) -> float:
    """The same in the format that users train in; the seams are reported as they are there."""
    model, rows = copy.deepcopy(model).float(), make_rows()
    trainer, _, own = step(model, rows, tokenizer)
    report.update(flat=trainer.seams.flat, scoring=trainer.seams.scoring, notes=trainer.notes)
    return distance(own, oracle(model, rows)[1])


def adapters(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """Where LoRA on all linear layers went, and its gradients beside peft's own."""
    from honed.model.adapters.adapters import lora_config, ready_to_train
    from honed.recipe import LoraRecipe

    adapted, notes = ready_to_train(copy.deepcopy(model), lora_config(**asdict(LoraRecipe())))
    generator = torch.Generator().manual_seed(2)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.copy_(SPREAD * torch.randn(parameter.shape, generator=generator))
    owners = {name.partition(".lora_")[0] for name, p in adapted.named_parameters() if p.requires_grad}
    rows = make_rows()
    loss, gradients = oracle(adapted, rows)
    report: dict[str, Any] = {"notes": notes, "adapted": sorted({name.rpartition(".")[2] for name in owners})}
    report["missed"] = missed(adapted)

    def compare() -> float:
        trainer, own_loss, own = step(adapted, rows, tokenizer)
        report["lora notes"] = [note for note in trainer.notes if "LoRA" in note]
        return max(abs(own_loss - loss) / loss / 100, distance(own, gradients))

    report["gradients"] = tried(compare)
    report["export"] = tried(lambda: exported(model, adapted, tokenizer))
    return report


def missed(adapted: Any) -> dict[str, int]:
    """Frozen matrices without an adapter, by the last parts of their names: how many numbers they hold."""
    base = adapted.get_base_model()
    ends = {
        id(p) for end in (base.get_input_embeddings(), base.get_output_embeddings()) if end for p in end.parameters()
    }
    found: dict[str, int] = {}
    for name, parameter in base.named_parameters():
        if parameter.requires_grad or parameter.ndim < 2 or "base_layer" in name or id(parameter) in ends:
            continue
        short = ".".join(part for part in name.split(".")[-3:] if not part.isdigit())
        found[short] = found.get(short, 0) + parameter.numel()
    return found


def exported(model: nn.Module, adapted: Any, tokenizer: Any, *, auto: str = CAUSAL) -> float:
    """The merged model, as plain transformers loads it, beside the adapted one: relative difference of its logits."""
    import transformers

    from honed.model.export.export import Probe, export

    ids = make_rows()[1]["input_ids"]
    with tempfile.TemporaryDirectory() as place:
        base, run, out = (str(Path(place) / name) for name in ("base", "run", "out"))
        copy.deepcopy(model).float().save_pretrained(base)
        tokenizer.save_pretrained(base)
        tokenizer.save_pretrained(run)
        saved = copy.deepcopy(adapted).float()
        for config in saved.peft_config.values():
            config.base_model_name_or_path = base
        saved.save_pretrained(run)
        export(run, out, probes=[Probe(ids=ids, n_prompt=PROMPT)])
        return logits_apart(getattr(transformers, auto).from_pretrained(out, dtype=torch.float32), saved, ids)


def saved(model: nn.Module, tokenizer: Any, *, auto: str = CAUSAL) -> float:
    """What SFTTrainer saves, as plain transformers loads it: relative difference of its logits."""
    import transformers

    trainer, *_ = step(model, make_rows(), tokenizer)
    with tempfile.TemporaryDirectory() as place:
        trainer.save_model(place)
        again = getattr(transformers, auto).from_pretrained(place, dtype=next(model.parameters()).dtype)
    return logits_apart(again, model, make_rows()[1]["input_ids"])


@torch.no_grad()
def logits_apart(found: nn.Module, expected: nn.Module, ids: Sequence[int]) -> float:
    """Relative difference of two models' logits for one document."""
    a, b = (model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits.double() for model in (found, expected))
    return float((a - b).norm() / b.norm())


def generation(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """Whether greedy answers are those of `generate`, and which engine gave them."""
    from honed.generate.choice import open_engine
    from honed.generate.request import Request

    model = copy.deepcopy(model).eval()
    model.generation_config.eos_token_id = None
    prompts = [row["input_ids"] for row in make_rows()]
    expected = [plain_answer(model, prompt) for prompt in prompts]
    with open_engine(model, tokenizer) as (engine, note):
        asked = [Request(prompt_ids=prompt, max_new_tokens=NEW) for prompt in prompts]
        found = {piece.request: list(piece.done.ids) for piece in engine.run(asked) if piece.done is not None}
    return {"note": note, "same": [found[n] for n in range(len(prompts))] == expected}


def plain_answer(model: Any, prompt: list[int]) -> list[int]:
    """One prompt by transformers' `generate`, without padding."""
    ids_1L = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(ids_1L), "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    answer: list[int] = model.generate(input_ids=ids_1L, **options)[0, len(prompt) :].tolist()
    return answer


def planning(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Whether the plan counts every weight, and predicts a peak."""
    from honed.model.plan import plan

    with tempfile.TemporaryDirectory() as place:
        model.config.save_pretrained(place)
        jobs = [plan.job_for(place, method=method, length=64) for method in ("full", "lora")]
    counted = sum(parameter.numel() for parameter in model.parameters())
    peaks = [plan.estimate(job).peak for job in jobs]
    return {"counted": jobs[0].sizes.parameters == counted, "of": [jobs[0].sizes.parameters, counted], "peaks": peaks}


CHECKS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "training": training,
    "adapters": adapters,
    "saved": saved,
    "generation": generation,
    "planning": planning,
}


def tried(check: Callable[[], Any]) -> Any:
    """What a check found; an error as text, honed's own refusals marked as such."""
    from honed.errors import HonedError

    try:
        return check()
    except HonedError as refusal:
        return f"refused: {refusal}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/honed/" in frame.filename][-1:]
        places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [frames[-1], *ours])
        return f"error: {type(error).__name__}: {str(error)[:300]} ({places})"


def check(kind: str, tokenizer: Any) -> dict[str, Any]:
    """Everything about one type."""
    model = tried(lambda: make_model(kind))
    if isinstance(model, str):
        return {"made": model}
    plain = tried(lambda: losses(copy.deepcopy(model), make_rows()))
    if isinstance(plain, str):
        return {"made": plain}
    return {"made": True, **{name: tried(lambda run=run: run(model, tokenizer)) for name, run in CHECKS.items()}}
