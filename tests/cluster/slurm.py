"""A Slurm cluster on the hosts of a test: one controller on the first, one node on each, munge between them."""

from pathlib import Path

from tests.cluster.hosts import Host
from tests.cluster.runs import wait_until

# As on a cluster, but for this: everything runs as root; processes are found by their parents, because control groups
# belong to the machine and not to a namespace; a node claims four cores, whatever there are; and the nodes keep their
# spools side by side on one disk.
_CONFIG = """\
ClusterName=test
SlurmctldHost={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
KillWait={kill_wait}
SlurmdTimeout=60
NodeName={nodes} CPUs=4 RealMemory=512
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


class Slurm:
    """The cluster; its commands run on the controller's host."""

    def __init__(self, hosts: list[Host], folder: Path, kill_wait: int) -> None:
        """Start it. kill_wait: seconds between SIGTERM and SIGKILL of a job that is preempted or cancelled."""
        self.controller = hosts[0]
        self.folder = folder
        etc = folder / "etc"
        for part in (etc, folder / "state", *(folder / f"spool.{host.name}" for host in hosts)):
            part.mkdir(parents=True)
        names = ",".join(host.name for host in hosts)
        (etc / "slurm.conf").write_text(
            _CONFIG.format(controller=hosts[0].name, folder=folder, nodes=names, kill_wait=kill_wait)
        )
        # slurmd wants one of its plugins for control groups even if nothing uses them.
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = folder / "munge.key"
        key.write_bytes(b"a key of no secrecy, for the hosts of one test")
        key.chmod(0o600)
        for host in hosts:
            host.mount(etc, "/etc/slurm")
            self._start_munge(host, key)
        self.controller.run("slurmctld")
        for host in hosts:
            host.run("slurmd", "-N", host.name)
        self._wait_for_nodes(len(hosts))

    def run(self, *words: object, timeout: float = 60.0) -> str:
        """Run a Slurm command on the controller's host."""
        return self.controller.run(*words, timeout=timeout)

    def submit(self, *words: object) -> str:
        """`sbatch`; returns the job's number."""
        return self.run("sbatch", "--parsable", *words).strip().split(";")[0]

    def state(self, job: str) -> str:
        """The state of a job: PENDING, RUNNING, COMPLETED, ..."""
        return self._field(job, "JobState")

    def restarts(self, job: str) -> int:
        """How often a job has been requeued."""
        return int(self._field(job, "Restarts"))

    def logs(self) -> str:
        """The ends of the daemons' logs, for a failure's message."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def _field(self, job: str, name: str) -> str:
        shown = self.run("scontrol", "show", "job", job)
        return next(word.partition("=")[2] for word in shown.split() if word.startswith(f"{name}="))

    def _start_munge(self, host: Host, key: Path) -> None:
        own = ["--socket=/run/munge.socket", "--pid-file=/run/munge.pid", "--seed-file=/run/munge.seed"]
        log = f"--log-file={self.folder}/munge.{host.name}.log"
        # --force: the folders of a test are not owned the way munge wants them.
        host.run("munged", "--force", f"--key-file={key}", log, *own)

    def _wait_for_nodes(self, count: int) -> None:
        def idle() -> bool:
            return (
                self.run("sinfo", "--noheader", "--Node", "--partition=all", "--format=%t").split() == ["idle"] * count
            )

        wait_until("idle", idle, 60, lambda: f"{self.run('sinfo', '--Node', '--long')}\n{self.logs()}")
