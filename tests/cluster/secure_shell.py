"""An ssh server on a host, and keys with which every host reaches every other as root."""

import subprocess
from pathlib import Path

from tests.cluster.hosts import Host
from tests.cluster.runs import wait_until

# The whole of /etc/ssh as the hosts see it: keys that were there before play no part.
_CLIENT = """\
Host *
    IdentityFile /etc/ssh/id_ed25519
    UserKnownHostsFile /dev/null
    StrictHostKeyChecking no
    LogLevel ERROR
"""
_SERVER = """\
HostKey /etc/ssh/id_ed25519
AuthorizedKeysFile /etc/ssh/id_ed25519.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
"""


def start_ssh(hosts: list[Host], folder: Path) -> None:
    """Make one key pair in `folder` and start a server on each host that accepts it."""
    etc = folder / "ssh"
    etc.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", etc / "id_ed25519"], check=True)
    (etc / "ssh_config").write_text(_CLIENT)
    (etc / "sshd_config").write_text(_SERVER)
    for host in hosts:
        host.mount(etc, "/etc/ssh")
        host.run("mkdir", "/run/sshd")
        host.run("/usr/sbin/sshd")
    for host in hosts:
        _wait_for_answer(hosts[0], host)


def _wait_for_answer(source: Host, target: Host) -> None:
    def ask() -> tuple[int, str]:
        return source.finish("ssh", "-o", "ConnectTimeout=5", target.name, "hostname")

    wait_until(f"answered by {target.name}", lambda: ask()[0] == 0, 20, lambda: ask()[1])
    assert ask()[1].strip() == target.name
