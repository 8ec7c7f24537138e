"""What the launch scripts ask of Slurm and of DeepSpeed's launcher, in whose place a program writes it down.

tests/cluster has the real ones.
"""

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


SETTINGS = {"OMP_NUM_THREADS": "2", "HF_HOME": "/shared/my hub", "WANDB_MODE": "offline", "NCCL_DEBUG": "WARN"}
SECRETS = {"HF_TOKEN": "hf_1", "WANDB_API_KEY": "hf_2", "HF_SECRET_2": "hf_3", "GLOO_PASSWORD": "hf_4"}


def test_settings_are_passed_on_to_all_machines_and_secrets_are_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Everybody on the machines sees command lines, and the launcher logs them."""
    script = [SCRIPTS / "deepspeed_hostfile.sh", "hosts", "run.yaml", "train.resume=auto"]
    told = arguments(tmp_path, "deepspeed", script, {**SETTINGS, **SECRETS, "ELSE": "1"})
    passed = told[told.index("env") + 1 : -6]
    assert sorted(passed) == sorted(f"{name}={value}" for name, value in SETTINGS.items())
    assert told[-5:] == ["-m", "megaokd.cli", "train", "run.yaml", "train.resume=auto"]
    said = capfd.readouterr().err
    assert said.count("is not passed on") == len(SECRETS)
    assert all(f": {name} is not" in said for name in SECRETS)
    assert "hf_" not in said + " ".join(told)
