"""`launch_scripts/slurm.sbatch` on a cluster of two nodes: submitted, interrupted in four ways, continued or not."""

import time
from pathlib import Path

import pytest

from tests.cluster.hosts import Host
from tests.cluster.runs import (
    OPTIONS,
    SCRIPTS,
    STEPS,
    assert_same_losses,
    messages,
    steps_done,
    wait_until,
    write_config,
)
from tests.cluster.slurm import Slurm
from tests.support.tiny import TinyWorld

# The numbers of this cluster in place of the script's; sbatch takes the command line's.
SIZE = ("--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")
SAVED = "SIGTERM received, checkpoint saved"


@pytest.fixture(scope="module")
def slurm(hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Slurm:
    return Slurm(hosts, tmp_path_factory.mktemp("slurm"), kill_wait=60)


class Job:
    """A training of four tasks on both nodes."""

    def __init__(self, slurm: Slurm, world: TinyWorld, folder: Path) -> None:
        config = write_config(world, folder, **OPTIONS)
        self.slurm, self.folder, self._log = slurm, folder / "run", folder / "job.log"
        script = (SCRIPTS / "slurm.sbatch", config, "parallel={tensor: 2, pipeline: 2}")
        self.number = slurm.submit(*SIZE, f"--output={self._log}", *script)

    def log(self) -> str:
        """What the job has said so far."""
        return self._log.read_text() if self._log.exists() else ""

    def saves(self) -> int:
        """How often SIGTERM was answered with a checkpoint."""
        return "".join(messages(self.folder)).count(SAVED)

    def wait_for_step(self, step: int) -> None:
        """Until the step is done; the job must not be finished by then."""
        wait_until(f"at step {step}", lambda: step in steps_done(self.folder), 120, self.explain)
        assert STEPS not in steps_done(self.folder), "finished before it could be interrupted: it tests nothing"

    def wait_for_state(self, state: str, restarts: int, seconds: float) -> None:
        """`Restarts` rises at once, the state once the processes have ended; COMPLETING until then."""

        def reached() -> bool:
            return self.slurm.state(self.number) == state and self.slurm.restarts(self.number) == restarts

        wait_until(f"{state} after {restarts} restarts", reached, seconds, self.explain)

    def start_now(self) -> None:
        """Slurm lets a requeued job wait for two minutes; an administrator's word shortens it.

        Not to nothing: a node refuses a job in the second in which it has killed it.
        """
        time.sleep(2)
        self.slurm.run("scontrol", "update", f"job={self.number}", "StartTime=now")

    def explain(self) -> str:
        """For a failure's message."""
        return f"{self.log()[-6000:]}\n{self.slurm.run('scontrol', 'show', 'job', self.number)}\n{self.slurm.logs()}"


def test_interrupted_job_saves_and_finishes(slurm: Slurm, alone: Path, tiny_world: TinyWorld, tmp_path: Path) -> None:
    """The step in hand is saved each time, none is done twice, the losses are those of a run without interruption."""
    job = Job(slurm, tiny_world, tmp_path)

    job.wait_for_step(5)
    slurm.run("scontrol", "requeue", job.number)
    job.wait_for_state("PENDING", restarts=1, seconds=90)
    assert job.saves() == 1, job.explain()
    assert "back into the queue" not in job.log(), "Slurm had requeued it already"
    job.start_now()

    job.wait_for_step(steps_done(job.folder)[-1] + 3)
    # The tasks only, as --signal does before the time is over.
    slurm.run("scancel", "--signal=TERM", job.number)
    job.wait_for_state("PENDING", restarts=2, seconds=90)
    assert job.saves() == 2, job.explain()
    assert job.log().count("back into the queue") == 1, job.explain()
    job.start_now()

    job.wait_for_step(steps_done(job.folder)[-1] + 3)
    # Another job, in a partition of higher priority, needs every core of both nodes.
    whole = ("--partition=urgent", "--nodes=2", "--ntasks-per-node=4", f"--output={tmp_path / 'urgent.log'}")
    urgent = slurm.submit(*whole, "--wrap=hostname")
    job.wait_for_state("PENDING", restarts=3, seconds=90)
    wait_until("the other job's end", lambda: slurm.state(urgent) == "COMPLETED", 60, job.explain)
    assert job.saves() == 3, job.explain()
    assert job.log().count("back into the queue") == 1, "Slurm had requeued it already"
    job.start_now()

    job.wait_for_state("COMPLETED", restarts=3, seconds=240)
    assert steps_done(job.folder) == list(range(1, STEPS + 1)), "each step was done once"
    assert_same_losses(job.folder, alone)


def test_cancelled_job_saves_and_stays_cancelled(slurm: Slurm, tiny_world: TinyWorld, tmp_path: Path) -> None:
    job = Job(slurm, tiny_world, tmp_path)
    job.wait_for_step(3)
    slurm.run("scancel", job.number)
    job.wait_for_state("CANCELLED", restarts=0, seconds=90)
    assert job.saves() == 1, job.explain()
