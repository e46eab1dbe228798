"""Which coefficient the auxiliary loss gets."""

from types import SimpleNamespace
from typing import Any

import pytest

from honed.errors import ModelError, RecipeError
from honed.loss.router import aux_loss_coefficient, aux_loss_of

DENSE = SimpleNamespace(model_type="llama")
MIXTURE = SimpleNamespace(model_type="mixtral", output_router_logits=False, router_aux_loss_coef=0.02)
WITHOUT = SimpleNamespace(model_type="llama4_text", output_router_logits=False, router_aux_loss_coef=0.001)
DENSE_DOGE = SimpleNamespace(model_type="doge", output_router_logits=False, router_aux_loss_coef=0.001, is_moe=False)
BARE = SimpleNamespace(model_type="other_moe", output_router_logits=True)


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        (DENSE, None, 0.0),
        (DENSE, 0.0, 0.0),
        (MIXTURE, None, 0.02),
        (MIXTURE, 0.5, 0.5),
        (MIXTURE, 0.0, 0.0),
        (BARE, None, 0.0),
        (WITHOUT, None, 0.0),
        (DENSE_DOGE, None, 0.0),
        (BARE, 0.1, 0.1),
    ],
)
def test_the_models_own_unless_asked(config: Any, asked: float | None, expected: float) -> None:
    assert aux_loss_coefficient(config, asked) == expected


@pytest.mark.parametrize(("config", "asked"), [(DENSE, 0.1), (MIXTURE, -0.1), (WITHOUT, 0.1)])
def test_what_makes_no_sense_is_refused(config: Any, asked: float) -> None:
    with pytest.raises(RecipeError, match="router_aux_loss_coef"):
        aux_loss_coefficient(config, asked)


def test_a_model_that_gives_none_is_told() -> None:
    assert aux_loss_of(SimpleNamespace(aux_loss=1.5)) == 1.5
    with pytest.raises(ModelError, match="no auxiliary loss"):
        aux_loss_of(SimpleNamespace(aux_loss=None))
