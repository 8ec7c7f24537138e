"""`launch_scripts/deepspeed_hostfile.sh` over ssh and pdsh between two hosts."""

from pathlib import Path

import pytest

from tests.cluster.hosts import Host
from tests.cluster.runs import OPTIONS, SCRIPTS, assert_same_losses, write_config
from tests.cluster.secure_shell import start_ssh
from tests.support.tiny import TinyWorld

SCRIPT = SCRIPTS / "deepspeed_hostfile.sh"


@pytest.fixture(scope="module")
def hostfile(hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ssh")
    start_ssh(hosts, folder)
    path = folder / "hostfile"
    path.write_text("".join(f"{host.name} slots=2\n" for host in hosts))
    return path


def test_two_hosts_repeat_one_process(
    hosts: list[Host], hostfile: Path, alone: Path, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """Tensor-parallel inside each host, pipeline-parallel between them; the losses are those of one process."""
    config = write_config(tiny_world, tmp_path, **OPTIONS)
    output = hosts[0].run(SCRIPT, hostfile, config, "parallel={tensor: 2, pipeline: 2}", timeout=300)
    for host in hosts:
        assert f"{host.name}: " in output, "pdsh marks each line with the host that wrote it"
    assert_same_losses(tmp_path / "run", alone)


def test_a_mistake_ends_both_hosts(hosts: list[Host], hostfile: Path, tiny_world: TinyWorld, tmp_path: Path) -> None:
    config = write_config(tiny_world, tmp_path, **OPTIONS)
    status, output = hosts[0].finish(SCRIPT, hostfile, config, "parallel.tensor=3", timeout=120)
    assert status == 2, output
    assert "does not divide the number of processes, 4" in output
    assert not any(host.processes("megaokd.cli") for host in hosts)
