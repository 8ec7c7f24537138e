"""A host that the network loses in the middle of a run: every rank says whom it misses and ends; the run goes on."""

import re
import time
from pathlib import Path

from tests.cluster.hosts import Host
from tests.cluster.runs import STEPS, assert_same_losses, steps_done, wait_until, write_config
from tests.support.tiny import TinyWorld

LOST_RANK_S = 10
# The store's guard and the sentence's way to the others take some seconds more; the launcher, a few for its own end.
TIME_TO_END_S = LOST_RANK_S + 15


def command(hostfile: Path, config: Path, node: int) -> list[object]:
    """DeepSpeed's launcher on each host by itself: what a host says does not travel over the link that is cut."""
    launcher = ["deepspeed", "--hostfile", hostfile, "--no_ssh", f"--node_rank={node}", "--master_addr=node1"]
    program = ["--no_local_rank", "--module", "megaokd.cli"]
    return [*launcher, *program, "train", config, "parallel={tensor: 2, pipeline: 2}"]


def test_cut_link_is_named_and_the_run_resumes(
    hosts: list[Host], alone: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    options = {"train": {"steps": STEPS, "resume": "auto", "lost_rank_s": LOST_RANK_S}, "checkpoint": {"every": 3}}
    config, folder = write_config(tiny_world, tmp_path, **options), tmp_path / "run"
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host.name} slots=2\n" for host in hosts))

    runs = [host.start(*command(hostfile, config, node)) for node, host in enumerate(hosts)]
    wait_until("at step 5", lambda: len(steps_done(folder)) >= 5, 120)
    hosts[1].set_link("down")
    cut = time.monotonic()
    wait_until("ended", lambda: all(run.poll() is not None for run in runs), TIME_TO_END_S + 60)
    seconds = time.monotonic() - cut
    said = [run.communicate()[0] for run in runs]
    assert len(steps_done(folder)) < STEPS, "the run was finished before the link was cut: it tested nothing"
    assert [run.returncode for run in runs] == [1, 1], said
    # The host that keeps the store names the silent ranks, each with its machine: one where it was silent before the
    # other. The other host names the store that it cannot reach.
    lost = r"rank [23] \(node2, process \d+\)"
    for rank in (0, 1):
        silent = rf"rank {rank}: failed: ({lost} has|{lost}, {lost} have) given no sign of life for \d+ s"
        assert re.search(silent, said[0]), said[0]
    for rank in (2, 3):
        unreached = rf"rank {rank}: failed: rank 0 is gone .* at node1:29500 does not answer"
        assert re.search(unreached, said[1]), said[1]
    assert seconds < TIME_TO_END_S, f"took {seconds:.0f} s\n{said}"
    assert not any(host.processes("megaokd.cli") for host in hosts)

    hosts[1].set_link("up")
    runs = [host.start(*command(hostfile, config, node)) for node, host in enumerate(hosts)]
    said = [run.communicate(timeout=240)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert_same_losses(folder, alone)
