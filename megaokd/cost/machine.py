"""The machine that a run is on, in the terms of `hardware`: for what a run decides by its predicted cost."""

import os

import torch

from megaokd.cost.hardware import GIGA, GPUS, Assumptions, Cluster, Gpu

CORE = Gpu(
    "CPU, a process of one thread", 16 * GIGA, 100 * GIGA, 100 * GIGA, 7 * GIGA, GIGA, GIGA,
    sheet="round numbers", system="round numbers",
)  # fmt: skip
"""A process among others of one machine, which talk through its loopback device."""
CORE_LATENCY_S = 200e-6
COMMON_NODE = 8
"""GPUs of a node where the launcher does not say."""


def this_cluster(device: torch.device, processes: int) -> Cluster:
    """As rank 0 sees it; nodes are taken to be equal."""
    if device.type == "cpu":
        return Cluster(CORE, 1, processes, Assumptions(latency_s=CORE_LATENCY_S))
    properties = torch.cuda.get_device_properties(device)
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", min(processes, COMMON_NODE)))
    gpu = gpu_like(properties.name, properties.total_memory)
    return Cluster(gpu, -(-processes // per_node), per_node, Assumptions())


def gpu_like(name: str, memory: int) -> Gpu:
    """The entry of the table that a device's name contains, of several that nearest in memory; if none, an H100."""
    named = [gpu for gpu in GPUS.values() if gpu.name.replace(",", " ").split()[0] in name]
    return min(named or [GPUS["h100"]], key=lambda gpu: abs(gpu.memory - memory))
