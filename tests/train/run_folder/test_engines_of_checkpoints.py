"""Checkpoints that another engine wrote are known by their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from honed.train.run_folder import engines

PIECES = "global_step4/zero_pp_rank_{}_mp_rank_00_optim_states.pt"
ZERO2 = ["latest", "global_step4/mp_rank_00_model_states.pt", PIECES.format(0), PIECES.format(1)]
ZERO3 = [*ZERO2[:1], *ZERO2[2:], *(f"global_step4/zero_pp_rank_{n}_mp_rank_00_model_states.pt" for n in (0, 1))]
TWO = ["rng_state_0.pth", "rng_state_1.pth"]
FILES = {  # as DeepSpeed 0.19.8, accelerate 1.x and transformers 5.23 write them
    engines.PLAIN: ["optimizer.pt", *TWO],
    engines.FSDP: ["optimizer.bin", "pytorch_model_fsdp.bin", *TWO],
    engines.FSDP_IN_PARTS: ["optimizer_0/.metadata", *TWO],
    engines.deepspeed(zero3=False, processes=2): [*ZERO2, *TWO],
    engines.deepspeed(zero3=True, processes=2): [*ZERO3, *TWO],
    engines.deepspeed(zero3=False, processes=1): [*ZERO2[:3], "rng_state.pth"],
}


@pytest.mark.parametrize("engine", FILES)
def test_an_engine_is_known_by_its_files(engine: str, tmp_path: Path) -> None:
    for name in FILES[engine]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("global_step4")
    assert engines.engine_in(tmp_path) == engine
    for other in FILES:
        assert bool(engines.why_another(tmp_path, other)) == (other != engine)


def test_without_an_optimizer_any_engine_goes_on(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert engines.engine_in(tmp_path) is None
    assert not engines.why_another(tmp_path, engines.PLAIN)
