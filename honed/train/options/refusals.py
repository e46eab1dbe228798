"""Converts transformers' errors about arguments into honed's, with a fix and without a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from honed.errors import HonedError, RecipeError
from honed.recipe import suggest

# Words in an error message -> the fix.
FIXES = {
    "bf16/gpu": "leave bf16 out (it is taken where the device has it), or set use_cpu=True to train in bfloat16 on it",
    "load_best_model_at_end": "set save_strategy and eval_strategy alike, and save_steps to a multiple of eval_steps",
    "At most one of fp16 and bf16": "leave both out: bf16 is taken where the device has it",
}
# Value of report_to -> its packages, if they are named differently.
PACKAGES = {"comet_ml": "comet-ml", "azure_ml": "azureml-sdk mlflow", "flyte": "flytekit", "kubeflow": "kubeflow"}


@contextmanager
def refusals_of_arguments() -> Iterator[None]:
    """Within the block, a ValueError from transformers becomes a RecipeError."""
    try:
        yield
    except HonedError:
        raise
    except ValueError as error:
        said = " ".join(str(error).split())
        fix = next((fix for words, fix in FIXES.items() if words in said), "change that argument")
        raise RecipeError(f"These arguments cannot be used: {said}", fix=fix) from None


def need_reporters(report_to: Sequence[str]) -> None:
    """Checks the services that metrics are reported to.

    Raises:
        RecipeError: one is unknown, or its package is not installed.
    """
    if not report_to:
        return
    from transformers.integrations import integration_utils as known

    for name in report_to:
        if name not in known.INTEGRATION_TO_CALLBACK:
            raise RecipeError(
                f"report_to names an unknown service: {name!r}.", fix=suggest(name, known.INTEGRATION_TO_CALLBACK)
            )
    installed = {*known.get_available_reporting_integrations(), *(["flyte"] if known.is_flytekit_available() else [])}
    if absent := [name for name in report_to if name not in installed]:
        packages = " ".join(PACKAGES.get(name, name) for name in absent)
        raise RecipeError(
            f"report_to names {', '.join(map(repr, absent))}, whose package is not installed.",
            fix=f"pip install {packages}; or set report_to='none'",
        )
