"""What a run tells of its precision."""

import torch

from megaokd.run import precision_notes


def test_fp32_on_a_gpu_is_told() -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    (note,) = precision_notes("fp32", gpu)
    assert "train.precision=bf16" in note
    assert precision_notes("bf16", gpu) == precision_notes("fp32", cpu) == []
