"""What the launch scripts ask of Slurm, which a stand-in on the PATH writes down; tests/cluster has the real one."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "launch_scripts"


def arguments(folder: Path, command: str, words: list[object], variables: dict[str, str]) -> list[str]:
    """What a script calls the command with, in whose place a program stands that writes its arguments down."""
    told = folder / "told"
    programs = {command: f"#!/bin/sh\nprintf '%s\\0' \"$@\" > '{told}'\n", "scontrol": "#!/bin/sh\necho node1\n"}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    subprocess.run([str(word) for word in words], check=True, timeout=60, env={"PATH": path, **variables})
    return told.read_text().split("\0")[:-1]


@pytest.mark.parametrize(("given", "passed"), [({"SLURM_CPUS_PER_TASK": "8"}, 8), ({}, 1)])
def test_srun_binds_a_task_to_as_many_cores_as_the_job_asked_for(
    given: dict[str, str], passed: int, tmp_path: Path
) -> None:
    """srun does not take the number from sbatch since Slurm 22.05; one core would run all threads of a task."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", **given}
    told = arguments(tmp_path, "srun", ["bash", SCRIPTS / "slurm.sbatch", "run.yaml", "parallel={tensor: 2}"], job)
    assert f"--cpus-per-task={passed}" in told[: told.index("bash")], told
    assert told[-3:] == ["run.yaml", "parallel={tensor: 2}", "train.resume=auto"]
