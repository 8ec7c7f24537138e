"""The hosts are what the other tests of this folder take them for: apart from each other, and gone afterwards."""

from pathlib import Path

from tests.cluster.hosts import Host, Network
from tests.cluster.runs import wait_until
from tests.cluster.secure_shell import start_ssh


def reaches(source: Host, target: Host) -> bool:
    status, _ = source.finish("ssh", "-o", "ConnectTimeout=2", target.name, "true")
    return status == 0


def test_a_link_is_cut_and_mended(hosts: list[Host], tmp_path: Path) -> None:
    first, second = hosts
    assert [host.run("hostname", "-I").strip() for host in hosts] == ["192.0.2.1", "192.0.2.2"]
    start_ssh(hosts, tmp_path)
    second.set_link("down")
    assert not reaches(first, second)
    assert not reaches(second, first)
    second.set_link("up")
    assert reaches(first, second)


def test_nothing_is_left(tmp_path: Path) -> None:
    """A host ends with everything on it, a daemon included."""
    with Network(("left", "right"), tmp_path) as network:
        pids = [host.pid for host in network.hosts]
        # A command that puts itself into the background, as daemons do; seen from outside by the file it names.
        mark = tmp_path / "a daemon of this test"
        mark.touch()
        network.hosts[0].run("bash", "-c", f"tail --follow '{mark}' >/dev/null 2>&1 & disown")
        wait_until("started", lambda: bool(holders(mark)), 5)
    wait_until("gone", lambda: not holders(mark), 10)
    wait_until("reaped", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)


def holders(path: Path) -> list[str]:
    """The processes of the machine that name a file on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if str(path).encode() in words:
            found.append(entry.parent.name)
    return found
