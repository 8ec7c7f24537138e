"""Two hosts for a test module, and a run in one process whose losses the runs on the hosts are held against."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Host, Network, unavailable
from tests.cluster.runs import OPTIONS, write_config
from tests.support.launch import megaokd, must
from tests.support.tiny import TinyWorld

PROGRAMS = ("slurmctld", "slurmd", "munged", "sshd", "pdsh")


def pytest_configure() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name, path="/usr/bin:/usr/sbin") is None]
    reason = unavailable() or (f"without {', '.join(missing)}" if missing else "")
    if reason:
        pytest.exit(f"tests/cluster cannot run {reason}; `make test-cluster` installs what it needs", returncode=2)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    with Network(("node1", "node2"), tmp_path_factory.mktemp("network")) as network:
        yield network.hosts


@pytest.fixture(scope="session")
def alone(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that every other must repeat: one process, one machine, never stopped."""
    folder = tmp_path_factory.mktemp("alone")
    must(megaokd("train", write_config(tiny_world, folder, **OPTIONS)))
    return folder / "run"
