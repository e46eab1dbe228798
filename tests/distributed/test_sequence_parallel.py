from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.distributed.test_engines import ALONE, FSDP, UNEVEN, same_run, settings

if TYPE_CHECKING:
    from conftest import Ended, Ranks
SHARED = {"sequence_parallel_size": 2, "gradient_accumulation_steps": 4}


@pytest.fixture(scope="module")
def alone(ranks: Ranks) -> Ended:
    return ranks("sp-alone", world=1, **settings(ALONE))


@pytest.mark.parametrize("engine", [{}, FSDP], ids=["ddp", "fsdp2"])
def test_steps(engine: dict[str, Any], alone: Ended, ranks: Ranks) -> None:
    same_run(ranks(f"sp-{len(engine)}", **settings({**SHARED, **engine})), alone)
