"""What a run imports: only what its engine needs. Each library costs every start of every run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def test_a_run_brings_no_trainer_until_it_needs_one() -> None:
    """transformers' Trainer brings `datasets` and pandas; the plain engine has no use for them."""
    unwanted = "{'transformers.trainer', 'honed.train.trainer.trainer', 'datasets', 'pandas'}"
    program = f"import sys, honed.train.run.run; print(*sorted(sys.modules.keys() & {unwanted}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"honed.train.run.run imports {done.stdout.strip()}"
