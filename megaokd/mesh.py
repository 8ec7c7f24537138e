"""The device mesh (pipeline x data x tensor) and every process group of a run.

Groups are built here, once, and passed on as arguments; nothing else creates one and nothing stores one globally.
Tensor-parallel ranks are neighbours (they talk most), pipeline stages are furthest apart.
"""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from megaokd.config import Parallel
from megaokd.errors import UserError

AXES = ("pipeline", "data", "tensor")
_DISK_TIMEOUT = timedelta(days=7)
"""Of `ParallelMesh.saving`. A model folder may take hours to hash or to write, and a lost rank is found otherwise."""


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh as a rank sees it: its process group, its place in it and the group's size."""

    group: dist.ProcessGroup
    rank: int
    size: int


@dataclass(frozen=True)
class ParallelMesh:
    """All process groups of a run.

    `model` is the group of the ranks that hold one replica together (pipeline x tensor at one data rank); `ends` joins
    the first and the last pipeline stage of this rank's column and is None elsewhere and where there is one stage.
    """

    device: torch.device
    pipeline: Axis
    data: Axis
    tensor: Axis
    model: Axis
    ends: dist.ProcessGroup | None
    saving: dist.ProcessGroup
    """All ranks, on gloo: for the thread that writes checkpoints while the others' collectives go on, and for all that
    waits for another rank's disk. Its timeout is not the run's: only `rank_watch` ends such a wait."""

    @property
    def rank(self) -> int:
        """The global rank."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """The number of processes of the run."""
        return dist.get_world_size()

    @property
    def is_main(self) -> bool:
        """Whether this process talks to the user (global rank 0)."""
        return self.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the last pipeline stage, where the loss is computed."""
        return self.pipeline.rank == self.pipeline.size - 1


def start_distributed(timeout_s: int) -> torch.device:
    """Join the process group of the launcher, or start a group of one; return this rank's device.

    NCCL with CUDA, gloo without. A launcher (torchrun, deepspeed, srun with its variables exported) sets RANK,
    WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Raises:
        UserError: several Slurm tasks without these variables: each would train alone and overwrite the others; or more
            processes than GPUs on this machine.
    """
    if "RANK" not in os.environ:
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in os.environ:
            raise UserError(
                f"srun started {os.environ['SLURM_NTASKS']} tasks, but RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and "
                "MASTER_PORT are not set; launch_scripts/slurm.sbatch shows how to set them"
            )
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", **address)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", own_gpu()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))
    return device


def own_gpu() -> int:
    """The number of this process's GPU among those that it sees; 0 where Slurm shows each task one of its own.

    Raises:
        UserError: more processes on this machine than GPUs.
    """
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if gpus == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun shows the same GPUs to all of its processes
        return 0
    processes = max(local + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if processes > gpus:
        raise UserError(
            f"{processes} processes were started on {socket.gethostname()}, which has {gpus} GPUs that they see; start "
            "one process a GPU (--nproc-per-node, --ntasks-per-node) or show them more (CUDA_VISIBLE_DEVICES)"
        )
    return local


def free_port() -> int:
    """Of this host; nobody listens there now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def build_mesh(parallel: Parallel, device: torch.device, timeout_s: int = 600) -> ParallelMesh:
    """Build the groups of a layout. Collective: every rank of the world calls it once.

    timeout_s: a collective in any of the groups but `saving` that waits longer raises.

    Raises:
        UserError: the layout does not divide the number of processes.
    """
    data = data_parallel_size(parallel, dist.get_world_size())
    shape = (parallel.pipeline, data, parallel.tensor)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=AXES)
    grid = mesh.mesh
    pipeline_rank, data_rank, tensor_rank = (int(mesh.get_local_rank(axis)) for axis in AXES)

    # new_group is collective over the world: every rank walks through all groups in the same order.
    model = ends = None
    for replica in range(data):
        group = dist.new_group(grid[:, replica, :].flatten().tolist())
        model = group if replica == data_rank else model
    assert model is not None
    for column in grid[[0, -1]].flatten(1).T.tolist() if parallel.pipeline > 1 else []:
        group = dist.new_group(column)
        ends = group if dist.get_rank() in column else ends
    saving = dist.new_group(backend="gloo")
    _set_pg_timeout(_DISK_TIMEOUT, saving)
    for group in (*(mesh.get_group(axis) for axis in AXES), model, *([ends] if ends is not None else [])):
        _set_pg_timeout(timedelta(seconds=timeout_s), group)  # groups do not inherit the world's
    return ParallelMesh(
        device=device,
        pipeline=_axis(mesh, "pipeline"),
        data=_axis(mesh, "data"),
        tensor=_axis(mesh, "tensor"),
        model=Axis(model, pipeline_rank * parallel.tensor + tensor_rank, parallel.pipeline * parallel.tensor),
        ends=ends,
        saving=saving,
    )


@dataclass(frozen=True)
class TensorSplit:
    """The tensor axis seen as groups of ranks that each hold a whole trunk of the student.

    Neighbours hold the same slice of it, as they do where there are fewer KV heads than ranks: slice s of t is on ranks
    s * groups to (s + 1) * groups - 1.
    """

    trunk: Axis | None
    """The ranks of this rank's group; None: one rank is a group."""
    rows: Axis
    """The ranks that hold the same slice, one of each group."""


def split_tensor_axis(mesh: ParallelMesh, inner: int, timeout_s: int = 600) -> TensorSplit:
    """Cut the tensor axis into groups of `inner` ranks. Collective: every rank of the world calls it once.

    inner: a divisor of the tensor axis, and smaller.
    """
    size, rank = mesh.tensor.size, mesh.tensor.rank
    assert size % inner == 0
    assert inner < size
    groups = size // inner
    if inner == 1:
        return TensorSplit(None, mesh.tensor)
    timeout = timedelta(seconds=timeout_s)
    trunk = rows = None
    for first in range(0, mesh.world_size, size):  # tensor-parallel ranks are neighbours
        ranks = range(first, first + size)
        for group in range(groups):
            made = dist.new_group(ranks[group::groups], timeout=timeout)
            trunk = made if mesh.rank in ranks[group::groups] else trunk
        for place in range(inner):
            made = dist.new_group(ranks[place * groups : (place + 1) * groups], timeout=timeout)
            rows = made if mesh.rank in ranks[place * groups : (place + 1) * groups] else rows
    assert trunk is not None
    assert rows is not None
    return TensorSplit(Axis(trunk, rank // groups, inner), Axis(rows, rank % groups, groups))


def data_parallel_size(parallel: Parallel, world_size: int) -> int:
    """What is left of the world for data parallelism; a `UserError` where tensor x pipeline does not divide it."""
    model_size = parallel.tensor * parallel.pipeline
    if world_size % model_size:
        product = f"parallel.tensor={parallel.tensor} x parallel.pipeline={parallel.pipeline} = {model_size}"
        launcher = f"torchrun --standalone --nproc-per-node={model_size} -m megaokd.cli COMMAND ..."
        if world_size == 1:
            raise UserError(
                f"{product} needs as many processes, and there is one; start them with a launcher: {launcher}"
            )
        raise UserError(
            f"{product} does not divide the number of processes, {world_size}: start a multiple of {model_size} "
            f"({launcher}), or choose a product among {divisors(world_size)}"
        )
    return world_size // model_size


def divisors(number: int) -> list[int]:
    """The divisors of a number, ascending: the choices that error messages offer."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _axis(mesh: DeviceMesh, name: str) -> Axis:
    group = mesh.get_group(name)
    return Axis(group, dist.get_rank(group), dist.get_world_size(group))


class DeepSpeedTopology:
    """The `mpu` object that DeepSpeed asks for its groups.

    The tensor-parallel getters are not optional: without them DeepSpeed counts only the first pipeline stage.
    """

    def __init__(self, mesh: ParallelMesh) -> None:
        self._axes: dict[str, Axis] = {
            "model_parallel": mesh.model,
            "data_parallel": mesh.data,
            "tensor_model_parallel": mesh.tensor,
            "pipeline_model_parallel": mesh.pipeline,
        }

    def __getattr__(self, name: str) -> Any:
        for axis_name, axis in self._axes.items():
            if name == f"get_{axis_name}_group":
                return lambda: axis.group
            if name == f"get_{axis_name}_rank":
                return lambda: axis.rank
            if name == f"get_{axis_name}_world_size":
                return lambda: axis.size
        raise AttributeError(name)
