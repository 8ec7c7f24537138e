"""Which GPU a process takes."""

import pytest
import torch

from megaokd.errors import UserError
from megaokd.mesh import own_gpu

CASES: dict[str, tuple[int, dict[str, str], int | None]] = {
    "one process": (8, {}, 0),
    "torchrun": (8, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "1"}, 3),
    "Slurm": (4, {"LOCAL_RANK": "3"}, 3),
    "Slurm, a GPU a task": (1, {"LOCAL_RANK": "3"}, 0),
    "torchrun, too many": (1, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"}, None),
    "Slurm, too many": (2, {"LOCAL_RANK": "2"}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_each_process_takes_a_gpu_of_its_own(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, variables, expected = CASES[case]
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected is None:
        with pytest.raises(UserError, match=f"which has {gpus} GPUs that they see; start one process a GPU"):
            own_gpu()
    else:
        assert own_gpu() == expected
