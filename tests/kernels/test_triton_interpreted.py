"""Runs `interpreted_triton.py` where TRITON_INTERPRET is set before triton is imported: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megaokd.kernels import distillation_loss

CASES = Path(__file__).with_name("interpreted_triton.py")


@pytest.mark.slow
def test_interpreted_kernels() -> None:
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CASES)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=CASES.parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def test_refused_on_a_cpu() -> None:
    with pytest.raises(RuntimeError, match="needs a CUDA or ROCm device"):
        distillation_loss(torch.zeros(1, 2), None, torch.tensor([0]), student={"ce": 1.0}, backend="triton")
