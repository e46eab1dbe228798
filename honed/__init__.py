"""honed: supervised fine-tuning of language models that shows what it learns and proves its shortcuts.

Public names are imported on first use, so `import honed` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from honed.data.batch.completion_collator import DataCollatorForCompletionOnlyLM as DataCollatorForCompletionOnlyLM
    from honed.data.prepare.options import PrepareOptions as PrepareOptions
    from honed.data.prepare.prepare import prepare as prepare
    from honed.data.read.trl_rows import apply_chat_template as apply_chat_template
    from honed.data.read.trl_rows import is_conversational as is_conversational
    from honed.data.read.trl_rows import is_conversational_from_value as is_conversational_from_value
    from honed.data.read.trl_rows import maybe_apply_chat_template as maybe_apply_chat_template
    from honed.data.read.trl_rows import maybe_convert_to_chatml as maybe_convert_to_chatml
    from honed.errors import HonedError as HonedError
    from honed.model.load.chat_tokens import clone_chat_template as clone_chat_template
    from honed.model.load.chat_tokens import setup_chat_format as setup_chat_format
    from honed.model.load.load import load_model as load_model
    from honed.model.load.load import load_tokenizer as load_tokenizer
    from honed.recipe import Recipe as Recipe
    from honed.recipe import load_recipe as load_recipe
    from honed.report.row.preview import show as show
    from honed.train.options.config import SFTConfig as SFTConfig
    from honed.train.options.model_config import ModelConfig as ModelConfig
    from honed.train.options.model_config import get_kbit_device_map as get_kbit_device_map
    from honed.train.options.model_config import get_peft_config as get_peft_config
    from honed.train.options.model_config import get_quantization_config as get_quantization_config
    from honed.train.options.script_arguments import ScriptArguments as ScriptArguments
    from honed.train.options.script_arguments import SFTScriptArguments as SFTScriptArguments
    from honed.train.options.script_arguments import TrlParser as TrlParser
    from honed.train.rows.language_modeling import DataCollatorForLanguageModeling as DataCollatorForLanguageModeling
    from honed.train.rows.responses import train_on_responses_only as train_on_responses_only
    from honed.train.trainer.trainer import SFTTrainer as SFTTrainer

__version__ = "0.1.0"

_HOMES = {
    "DataCollatorForCompletionOnlyLM": "honed.data.batch.completion_collator",
    "DataCollatorForLanguageModeling": "honed.train.rows.language_modeling",
    "HonedError": "honed.errors",
    "ModelConfig": "honed.train.options.model_config",
    "PrepareOptions": "honed.data.prepare.options",
    "Recipe": "honed.recipe",
    "SFTConfig": "honed.train.options.config",
    "SFTScriptArguments": "honed.train.options.script_arguments",
    "SFTTrainer": "honed.train.trainer.trainer",
    "ScriptArguments": "honed.train.options.script_arguments",
    "TrlParser": "honed.train.options.script_arguments",
    "apply_chat_template": "honed.data.read.trl_rows",
    "clone_chat_template": "honed.model.load.chat_tokens",
    "get_kbit_device_map": "honed.train.options.model_config",
    "get_peft_config": "honed.train.options.model_config",
    "get_quantization_config": "honed.train.options.model_config",
    "is_conversational": "honed.data.read.trl_rows",
    "is_conversational_from_value": "honed.data.read.trl_rows",
    "load_model": "honed.model.load.load",
    "load_recipe": "honed.recipe",
    "load_tokenizer": "honed.model.load.load",
    "maybe_apply_chat_template": "honed.data.read.trl_rows",
    "maybe_convert_to_chatml": "honed.data.read.trl_rows",
    "prepare": "honed.data.prepare.prepare",
    "setup_chat_format": "honed.model.load.chat_tokens",
    "show": "honed.report.row.preview",
    "train_on_responses_only": "honed.train.rows.responses",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the names above


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        from honed.train.options.not_here import NOT_HERE, refusal

        if name in NOT_HERE:  # ImportError, also for hasattr: `from honed import ...` would swallow any other error
            raise refusal(name)
        raise AttributeError(f"module 'honed' has no attribute {name!r}")
    from honed.collector import no_collections

    with no_collections():
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
