"""axolotl's YAML: what its keys mean here, its own defaults, and its datasets."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare

LEAST = """
base_model: owner/model
learning_rate: 2e-5
datasets:
  - path: owner/rows
    type: chat_template
"""


def test_a_qlora_run(made: Any) -> None:
    recipe = made("""
        base_model: NousResearch/Llama-3.2-1B
        model_type: AutoModelForCausalLM
        load_in_8bit: false
        load_in_4bit: true
        strict: false
        datasets:
          - path: mlabonne/FineTome-100k
            type: chat_template
            split: train[:20%]
            field_messages: conversations
            message_property_mappings:
              role: from
              content: value
        chat_template: llama3
        val_set_size: 0.05
        output_dir: ./outputs/out
        adapter: qlora
        lora_r: 32
        lora_alpha: 16
        lora_dropout: 0.05
        lora_target_linear: true
        sequence_len: 2048
        sample_packing: true
        eval_sample_packing: false
        wandb_project:
        gradient_accumulation_steps: 4
        micro_batch_size: 2
        num_epochs: 2
        optimizer: adamw_bnb_8bit
        lr_scheduler: cosine
        learning_rate: 2e-4
        bf16: auto
        tf32: false
        gradient_checkpointing: true
        logging_steps: 1
        attn_implementation: flash_attention_2
        warmup_ratio: 0.1
        evals_per_epoch: 4
        saves_per_epoch: 1
        weight_decay: 0.0
        special_tokens:
          pad_token: "<|end_of_text|>"
    """)
    assert (recipe.model, recipe.quantization, recipe.dtype) == ("NousResearch/Llama-3.2-1B", "nf4", None)
    data = recipe.data
    assert (data.files, data.columns) == (("mlabonne/FineTome-100k:train[:20%]",), {})
    assert (data.max_length, data.overlong, data.packing, data.train_on) == (2048, "drop", True, "assistant")
    assert (data.eval_share, data.template) == (0.05, "auto")
    assert recipe.lora is not None
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout) == (32, 16, 0.05)
    assert recipe.lora.target_modules == "all-linear"
    expected = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 2,
        "optim": "adamw_bnb_8bit",
        "lr_scheduler_type": "cosine",
        "learning_rate": 2e-4,
        "warmup_steps": 0.1,
        "save_strategy": "epoch",
        "eval_strategy": "steps",
        "eval_steps": 1 / 8,
        "eval_packing": False,
        "gradient_checkpointing": True,
        "tf32": False,
        "pad_token": "<|end_of_text|>",
        "save_total_limit": 4,
    }
    assert {key: recipe.train[key] for key in expected} == expected
    assert "bf16" not in recipe.train


def test_its_defaults_where_ours_differ(made: Any) -> None:
    """Values of its pydantic schemas, and of what its builder fills in."""
    recipe = made(LEAST)
    assert (recipe.lora, recipe.dtype) == (None, "bfloat16")
    assert (recipe.data.max_length, recipe.data.overlong, recipe.data.train_on) == (512, "drop", "assistant")
    expected = {
        "num_train_epochs": 1.0,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "save_strategy": "epoch",
        "seed": 42,
    }
    assert {key: recipe.train[key] for key in expected} == expected


ADAPTER = "adapter: lora\nlora_r: 8\nlora_alpha: 16\n"
QLORA = f"{ADAPTER}load_in_4bit: true\nlora_target_linear: true\n"


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("train_on_inputs: true", "data.train_on", "all"),
        ("excess_length_strategy: raise", "data.overlong", "error"),
        ("cosine_min_lr_ratio: 0.1", "train.lr_scheduler_type", "cosine_with_min_lr"),
        ("cosine_min_lr_ratio: 0.1", "train.lr_scheduler_kwargs", {"min_lr_rate": 0.1}),
        ("batch_size: 8\nmicro_batch_size: 2", "train.gradient_accumulation_steps", 4),
        ("saves_per_epoch: 2\nnum_epochs: 2", "train.save_steps", 0.25),
        ("save_steps: 100", "train.save_strategy", "steps"),
        ("evals_per_epoch: 4", "data.eval_share", None),
        ("val_set_size: 0.1\neval_strategy: epoch", "train.eval_strategy", "epoch"),
        ("load_in_4bit: true", "quantization", "nf4"),
        ("bf16: true", "train.bf16", True),
        ("bf16: false", "dtype", None),
        (ADAPTER + "lora_target_modules: [q_proj]\nload_in_8bit: true", "quantization", "int8"),
        (ADAPTER + "lora_target_modules: model.*q_proj", "lora.target_modules", "model.*q_proj"),
        (ADAPTER + "lora_target_linear: true\npeft_use_dora: true", "lora.use_dora", True),
        ("chat_template_jinja: mine.jinja", "data.template", "mine.jinja"),
        ("chat_template_kwargs: {enable_thinking: false}", "data.template_arguments", {"enable_thinking": False}),
        ("wandb_project: mine\nwandb_name: first", "train.report_to", ["wandb"]),
        ("shuffle_merged_datasets: false", "train.train_sampling_strategy", "sequential"),
        (f"freeze_mm_modules: true\n{ADAPTER}lora_target_linear: true", "train.freeze_vision", True),
        (
            "unfrozen_parameters: ['^lm_head', 'model.layers.4[4-9]+.mlp.*']",
            "train.trainable",
            ["^lm_head", r"^model\.layers\.4[4-9]+\.mlp\.*"],
        ),
        ("special_tokens: {bos_token: <s>, additional_special_tokens: [<a>]}\ntokens: [<b>]", "train.bos_token", "<s>"),
        ("special_tokens: {additional_special_tokens: [<a>]}\ntokens: [<b>]", "train.add_tokens", ["<b>", "<a>"]),
        ("tokens: {unk_token: <u>}", "train.unk_token", "<u>"),
        (
            "loraplus_lr_ratio: 16\nembedding_lr: 2e-6",
            "train.learning_rates",
            {"embed_tokens|lm_head": pytest.approx(0.1), "lora_B": 16.0},
        ),
        (
            "lr_groups: [{name: a, modules: [o_proj, mlp.up], lr: 1e-5}]",
            "train.learning_rates",
            {"o_proj": pytest.approx(0.5), r"mlp\.up": pytest.approx(0.5)},
        ),
        (f"{QLORA}quantize_moe_experts: true", "quantization", "nf4+experts"),
        (f"{QLORA}llama4_linearized_experts: true", "quantization", "nf4+experts"),
        ("quantize_moe_experts: true", "quantization", None),
        (f"{ADAPTER}lora_target_parameters: [experts.down_proj]", "lora.target_parameters", ("experts.down_proj",)),
        (f"{ADAPTER}lora_target_parameters: [experts.down_proj]", "lora.target_modules", None),
        (f"{QLORA}lora_rank_pattern: {{q_proj: 8}}", "lora.rank_pattern", {"q_proj": 8}),
        ("model_config: {output_router_logits: true}", "lora", None),
        ("model_config: {output_router_logits: true, router_aux_loss_coef: 0.02}", "train.router_aux_loss_coef", 0.02),
        ("test_datasets: [{path: held.jsonl, type: chat_template}]", "data.held_out", "held.jsonl"),
        ("early_stopping_patience: 3", "train.early_stopping_patience", 3),
        ("early_stopping_patience: 3", "train.load_best_model_at_end", True),
        ("context_parallel_size: 1", "lora", None),
        ("context_parallel_size: 2", "train.sequence_parallel_size", 2),
        ("sequence_parallel_degree: 4", "train.sequence_parallel_size", 4),
        ("plugins: [axolotl.integrations.liger.LigerPlugin]\nliger_rope: true", "lora", None),
    ],
)
def test_one_key(made: Any, line: str, key: str, value: Any) -> None:
    recipe = made(LEAST + line)
    section, _, name = key.rpartition(".")
    holder = getattr(recipe, section) if section else recipe
    assert (holder[name] if section == "train" else getattr(holder, name)) == value


def entry(text: str) -> str:
    """A file with this dataset."""
    return "base_model: owner/model\nlearning_rate: 1e-4\nsequence_len: 1024\ndatasets:\n" + textwrap.indent(text, "  ")


def test_data_sets(made: Any) -> None:
    told = made(
        entry("""
- path: a.jsonl
  type: chat_template
  field_messages: talk
  field_tools: functions
  message_property_mappings: {role: who, content: said}
  roles_to_train: [gpt, tool]
""")
    ).data
    assert told.columns == {"messages": "talk", "role": "who", "content": "said", "tools": "functions"}
    assert told.train_roles == ("assistant", "tool")
    texts = made(entry("- {path: json, data_files: [a.jsonl, b.jsonl], type: completion, field: body}")).data
    assert (texts.files, texts.format, texts.text_field) == (("a.jsonl", "b.jsonl"), "text", "body")
    assert (texts.train_on, texts.overlong) == ("all", "split")
    both = made(entry("- {path: o/a, name: en, type: chat_template}\n- {path: b.jsonl, type: completion}")).data
    assert both.sources == ({"files": "o/a@en"}, {"files": "b.jsonl", "format": "text"})


def test_a_pretraining_dataset_is_a_stream(made: Any) -> None:
    data = made("""
        base_model: owner/model
        learning_rate: 1e-4
        max_steps: 100
        pretraining_dataset:
          - path: HuggingFaceFW/fineweb-edu
            name: sample-10BT
            type: pretrain
    """).data
    assert data.files == ("HuggingFaceFW/fineweb-edu@sample-10BT",)
    assert (data.streaming, data.format, data.packing, data.packing_strategy) == (True, "text", True, "wrapped")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LEAST + "rl: dpo", "rl: dpo -- honed does supervised fine-tuning"),
        (LEAST + "adapter: llama-adapter", "write lora or qlora"),
        (LEAST + ADAPTER, "write lora_target_linear: true"),
        (LEAST + "lr_scheduler: rex", "not one of transformers' schedules"),
        (LEAST.replace("learning_rate: 2e-5", "embedding_lr: 1e-6"), "its factor needs the learning rate"),
        (LEAST + f"{QLORA}unfrozen_parameters: ['lm_head.*']", "an adapter leaves the model's own weights as they are"),
        (LEAST + "unfrozen_parameters: ['^lm_head.weight$[:32000]']", "name whole weights"),
        (LEAST + "model_config: {rope_theta: 1000000}", "not with rope_theta"),
        (
            LEAST + f"{ADAPTER}load_in_8bit: true\nlora_target_linear: true\nquantize_moe_experts: true",
            "to 4 bits only",
        ),
        (LEAST + "chat_template: chatml", "name a Jinja file"),
        (LEAST + "chat_template_jinja: '{{ messages }}'", "save the text as a file"),
        (LEAST + "val_set_size: 200", "write a share"),
        (LEAST + "special_tokens: {cls_token: <s>}", "cls_token is the tokenizer's own"),
        (LEAST + "plugins: [axolotl.integrations.spectrum.SpectrumPlugin]", "may change what is trained"),
        (LEAST + "tensor_parallel_size: 2", "use DDP or FSDP2"),
        (LEAST + "sequenc_len: 5", "did you mean 'sequence_len'?"),
        (entry("- {path: o/a, type: 'alpaca:chat'}"), "o/a: type alpaca:chat writes prompts in its own style"),
        (entry("- {path: o/a, type: {field_instruction: q}}"), "type of one's own writes prompts"),
        (entry("- {path: o/a, type: chat_template, train_on_eos: none}"), "train_on_eos is 'none'; here it is turn"),
        (entry("- {path: o/a, type: chat_template, drop_system_message: true}"), "honed has no drop_system_message"),
        (entry("- {path: o/a, type: completion, roles_to_train: [user]}"), "honed has no roles_to_train"),
        (entry("- {path: o/a, type: chat_template, message_property_mappings: {name: who}}"), "and no others"),
        (LEAST + "dataset_shard_num: 4", "honed has no such option"),
        (entry("- {path: a.jsonl, type: chat_template, split: 'train[:5%]'}"), "set cap in data.sources"),
    ],
)
def test_what_is_not_taken(honed: Any, theirs: Any, text: str, said: str) -> None:
    shown = honed("new", "recipe", theirs(text))
    assert (shown.status, shown.out) == (2, "")
    assert said in shown.err
    assert "theirs.yaml (axolotl) has 1 key that cannot be translated" in shown.err


def test_alpaca_prompts_are_written_as_it_does(
    honed: Any, made: Any, tmp_path: Path, model_folder: Path, tiny_tokenizer: Any
) -> None:
    rows = [
        {"instruction": "Translate.", "input": "Hallo", "output": "Hello"},
        {"instruction": "Greet.", "input": "", "output": "Hi"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    text = f"base_model: {model_folder}\nlearning_rate: 1e-4\nsequence_len: 512\ndatasets: [{{path: %s, type: alpaca}}]"
    recipe = made(text % (tmp_path / "rows.json"))
    assert (recipe.data.format, recipe.data.columns) == ("alpaca", {"system": "input"})
    options = PrepareOptions(format="alpaca", columns=recipe.data.columns, template=recipe.data.template)
    found = prepare(list(recipe.data.files), tiny_tokenizer, options)
    eos = tiny_tokenizer.eos_token
    begin = (tiny_tokenizer.bos_token or "") + "Below is an instruction that describes a task"
    expected = {
        f"{begin}, paired with an input that provides further context. Write a response that appropriately completes "
        f"the request.\n\n### Instruction:\nTranslate.\n\n### Input:\nHallo\n\n### Response:\nHello{eos}",
        f"{begin}. Write a response that appropriately completes the request.\n\n### Instruction:\nGreet.\n\n"
        f"### Response:\nHi{eos}",
    }
    assert {tiny_tokenizer.decode(row.input_ids) for row in found.rows} == expected
    trained = {tiny_tokenizer.decode(row.input_ids[row.weights > 0]) for row in found.rows}
    assert trained == {f"Hello{eos}", f"Hi{eos}"}
    without = honed("new", "recipe", tmp_path / "theirs.yaml")
    assert without.status == 2
    assert "name a file for it: OUT.yaml" in without.err
