"""Hosts made of Linux namespaces: each has its own network address, host name, mounts and process table.

Everything hangs on one process a host, the first of its process namespace. When it ends, the kernel ends every other
process of the host and takes its addresses, links and mounts away; it ends when the test does, however the test does.
Nothing outside the namespaces is changed.
"""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.support.launch import ROOT, environment

# RFC 5737 reserves these addresses for documentation: nobody's.
NETWORK = "192.0.2"


class Host:
    """One host. Use `start` or `run` for commands on it, `close` to end it and all that runs on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        # `setpriv --pdeathsig` ends `unshare` with the test, `--kill-child` ends the host with `unshare`.
        namespaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._first = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, "bash", "-c", _BOOT, "boot", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == "ready\n", f"host {name} did not start: are you root?"
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        self.pid = int(children.read_text())

    def command(self, *words: object) -> list[str]:
        """What runs `words` on this host, in the directory of the checkout."""
        inside = ["nsenter", f"--target={self.pid}", "--net", "--uts", "--mount", "--pid", f"--wd={ROOT}"]
        return [*inside, *map(str, words)]

    def start(self, *words: object, variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command on this host; its stdout and stderr come through one pipe."""
        return subprocess.Popen(
            self.command(*words),
            env={**environment(), **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: object, timeout: float = 60.0, variables: Mapping[str, str] | None = None) -> str:
        """Run a command on this host; it must succeed. Returns what it printed."""
        status, output = self.finish(*words, timeout=timeout, variables=variables)
        assert status == 0, f"{self.name}: {shlex.join(map(str, words))}: exit status {status}\n{output[-6000:]}"
        return output

    def finish(
        self, *words: object, timeout: float = 60.0, variables: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Run a command on this host to its end; returns its exit status and what it printed."""
        process = self.start(*words, variables=variables)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            self.close()  # nsenter is gone, what it started is not; and the pipe stays open until it is
            output, _ = process.communicate()
            raise AssertionError(f"{self.name}: {shlex.join(map(str, words))}: no end\n{output[-6000:]}") from None
        return process.returncode, output

    def mount(self, folder: Path, place: str) -> None:
        """Show `folder` as `place`, on this host only."""
        self.run("mount", "--bind", folder, place)

    def processes(self, pattern: str) -> list[int]:
        """Process ids, as this host counts them, of the commands that contain `pattern`."""
        status, output = self.finish("pgrep", "--full", pattern)
        assert status in (0, 1), output
        return [int(line) for line in output.split()]

    def set_link(self, state: str) -> None:
        """Cut this host off the network (`down`) or connect it again (`up`)."""
        self.run("ip", "link", "set", "eth0", state)

    def close(self) -> None:
        """End every process of the host; the kernel removes the rest."""
        self._first.kill()
        self._first.wait()


class Network:
    """Hosts on one switch, with addresses of their own and each other's names."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        """`folder` keeps the files that the hosts see in place of the machine's."""
        self._switch: Host | None = None
        self.hosts: list[Host] = []
        addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, 1)}
        table = folder / "hosts"
        table.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in addresses.items()))
        try:
            self._switch = Host("switch")
            self._switch.run("ip", "link", "add", "switch", "up", "type", "bridge")
            for name, address in addresses.items():
                host = Host(name)
                self.hosts.append(host)
                host.mount(table, "/etc/hosts")
                host.run("mount", "-t", "tmpfs", "run", "/run")
                self._plug(self._switch, host, f"{address}/24")
        except BaseException:
            self.close()
            raise

    def _plug(self, switch: Host, host: Host, address: str) -> None:
        peer = ("peer", "name", "eth0", "netns", host.pid)
        # `netns` takes a process as the machine counts it, so this one command runs outside.
        link = ("ip", "link", "add", host.name, "type", "veth", *peer)
        subprocess.run([*_only_network(switch), *map(str, link)], check=True)
        switch.run("ip", "link", "set", host.name, "master", "switch", "up")
        host.run("ip", "address", "add", address, "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")

    def close(self) -> None:
        """End all hosts and the switch."""
        for host in self.hosts:
            host.close()
        if self._switch is not None:
            self._switch.close()

    def __enter__(self) -> "Network":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unavailable() -> str:
    """Why hosts cannot be made here, or nothing where they can."""
    return "" if os.geteuid() == 0 else "without root, which namespaces need"


def _only_network(host: Host) -> list[str]:
    return ["nsenter", f"--target={host.pid}", "--net"]


_BOOT = 'mount --make-rprivate / && hostname "$1" && ip link set lo up && echo ready && exec sleep infinity'
