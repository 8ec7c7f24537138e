"""What the vendors say of a few GPUs, and what we assume of them. Units: bytes, FLOP/s, bytes/s; decimal prefixes.

Matrix products are dense: the data sheets' figures with sparsity are twice as high. `fp32` is the rate of the plain
units, which torch uses for fp32 products unless it is told otherwise. `link` is one direction of all links of a GPU to
those of its node together, half of what the sheets give for both; `network` one direction of its share of the network,
as the vendors' own systems have it. The table of docs/planning.md is this one, and a test compares them.
"""

from dataclasses import dataclass

from megaokd.config import Config
from megaokd.errors import UserError

TERA, GIGA = 10**12, 10**9


@dataclass(frozen=True)
class Gpu:
    """Constants of a GPU and of its place in a node."""

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    """Of its own memory."""
    link: float
    network: float
    sheet: str
    """Where the vendor says all of it but the network."""
    system: str
    """Where `network` is from."""


_DGX_A100 = "https://docs.nvidia.com/dgx/dgxa100-user-guide/introduction-to-dgxa100.html"
_DGX_H100 = "https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html"
_A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_MI300X = (
    "https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/data-sheets/amd-instinct-mi300x-data-sheet.pdf"
)
GPUS = {
    "h100": Gpu(
        "H100 SXM, 80 GB", 80 * GIGA, 989 * TERA, 67 * TERA, 3.35 * TERA, 450 * GIGA, 50 * GIGA,
        sheet="[H100](https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306)",
        system=f"[DGX H100]({_DGX_H100}): a port of 400 Gb/s (InfiniBand NDR) a GPU",
    ),
    "h200": Gpu(
        "H200 SXM, 141 GB", 141 * GIGA, 989 * TERA, 67 * TERA, 4.8 * TERA, 450 * GIGA, 50 * GIGA,
        sheet="[H200](https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446)",
        system=f"[DGX H200]({_DGX_H100}): a port of 400 Gb/s a GPU",
    ),
    "a100-40": Gpu(
        "A100 SXM, 40 GB", 40 * GIGA, 312 * TERA, 19.5 * TERA, 1.555 * TERA, 300 * GIGA, 25 * GIGA,
        sheet=f"[A100]({_A100})",
        system=f"[DGX A100]({_DGX_A100}): a port of 200 Gb/s (InfiniBand HDR) a GPU",
    ),
    "a100-80": Gpu(
        "A100 SXM, 80 GB", 80 * GIGA, 312 * TERA, 19.5 * TERA, 2.039 * TERA, 300 * GIGA, 25 * GIGA,
        sheet=f"[A100]({_A100})",
        system=f"[DGX A100]({_DGX_A100}): a port of 200 Gb/s a GPU",
    ),
    "b200": Gpu(
        "B200, 180 GB", 180 * GIGA, 2250 * TERA, 75 * TERA, 8 * TERA, 900 * GIGA, 50 * GIGA,
        sheet="[DGX B200](https://resources.nvidia.com/en-us-dgx-systems/dgx-b200-datasheet), fp32 from "
        "[HGX B200](https://www.nvidia.com/en-us/data-center/hgx/), an eighth of either",
        system="the same: a port of 400 Gb/s a GPU",
    ),
    "mi300x": Gpu(
        "MI300X, 192 GB", 192 * GIGA, 1307 * TERA, 163.4 * TERA, 5.3 * TERA, 448 * GIGA, 50 * GIGA,
        sheet=f"[MI300X]({_MI300X}): seven links of 64 GB/s a direction",
        system="assumed: 400 Gb/s a GPU; AMD sells no system",
    ),
    "l40s": Gpu(
        "L40S, 48 GB", 48 * GIGA, 362 * TERA, 91.6 * TERA, 0.864 * TERA, 32 * GIGA, 12.5 * GIGA,
        sheet="[L40S](https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413): PCIe 4.0 x16, no NVLink",
        system="assumed: 100 Gb/s a GPU",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What no data sheet says. Measure your own with `megaokd benchmark step`, and pass them on."""

    efficiency: float = 0.5
    """Of the rate of matrix products, over a whole pass: norms, attention's softmax and waiting for memory included."""
    link_efficiency: float = 0.7
    """Of the bandwidth of links, network and memory."""
    latency_s: float = 20e-6
    """Of a collective or a message, in addition."""
    call_s: float = 10e-6
    """Of the host, to start one kernel: Python, torch's dispatcher and the driver."""
    usable_memory: float = 0.9
    """The rest is the driver's, the libraries' and lost to fragments."""


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal GPUs."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    assumptions: Assumptions

    @property
    def processes(self) -> int:
        """One a GPU."""
        return self.nodes * self.gpus_per_node

    @property
    def usable_bytes(self) -> float:
        """Of a GPU's memory."""
        return self.gpu.memory * self.assumptions.usable_memory

    def flops(self, config: Config) -> float:
        """Matrix products a second that are counted on, of a GPU."""
        peak = self.gpu.bf16 if config.train.precision == "bf16" else self.gpu.fp32
        return peak * self.assumptions.efficiency

    def bandwidth(self, span: int) -> float:
        """One direction between a GPU and others of its group, `span` neighbouring ranks from the first to the last."""
        inside = span <= self.gpus_per_node and self.gpus_per_node % span == 0
        return (self.gpu.link if inside else self.gpu.network) * self.assumptions.link_efficiency


def find_gpu(name: str) -> Gpu:
    """The entry of that name.

    Raises:
        UserError: there is none.
    """
    if name not in GPUS:
        raise UserError(f"--gpu {name}: not in the table of megaokd/cost/hardware.py; known are {', '.join(GPUS)}")
    return GPUS[name]
