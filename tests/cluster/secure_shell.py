"""An ssh server on a host, and keys with which every host reaches every other as root."""

import subprocess
import time
from pathlib import Path

from tests.cluster.hosts import Host

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
    deadline = time.monotonic() + 20
    while True:
        status, output = source.finish("ssh", "-o", "ConnectTimeout=5", target.name, "hostname")
        if status == 0:
            assert output.strip() == target.name
            return
        assert time.monotonic() < deadline, f"{target.name} does not answer ssh: {output}"
        time.sleep(0.2)
