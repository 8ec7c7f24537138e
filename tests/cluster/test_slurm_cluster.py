"""The Slurm cluster of these tests is one: two nodes with addresses of their own, ranks in the order of the nodes."""

from pathlib import Path

from tests.cluster.hosts import Host
from tests.cluster.slurm import Slurm


def test_tasks_are_spread_over_two_nodes(hosts: list[Host], tmp_path: Path) -> None:
    slurm = Slurm(hosts, tmp_path / "slurm", kill_wait=30)
    tell = 'echo "$SLURM_PROCID $SLURM_LOCALID $(hostname) $(hostname -I)"'
    said = slurm.run("srun", "--nodes=2", "--ntasks-per-node=2", "bash", "-c", tell)
    tasks = sorted(line.split() for line in said.splitlines() if not line.startswith("srun:"))
    assert tasks == [
        ["0", "0", "node1", "192.0.2.1"],
        ["1", "1", "node1", "192.0.2.1"],
        ["2", "0", "node2", "192.0.2.2"],
        ["3", "1", "node2", "192.0.2.2"],
    ]
