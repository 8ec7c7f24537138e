"""What the vendors say of a few GPUs, and what we assume of them. Units: bytes, FLOP/s, bytes/s; decimal prefixes.

Matrix products are dense: the data sheets' figures with sparsity are twice as high. `fp32` is the rate of the plain
units, which torch uses for fp32 products unless it is told otherwise. `link` is one direction of all links of a GPU to
those of its node together; `network` one direction of its share of the network, as the vendors' own systems have it.
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
    source: str


GPUS = {
    "h100": Gpu(
        "H100 SXM, 80 GB", 80 * GIGA, 989 * TERA, 67 * TERA, 3.35 * TERA, 450 * GIGA, 50 * GIGA,
        "NVIDIA H100 data sheet; DGX H100: eight 400 Gb/s InfiniBand ports for eight GPUs",
    ),
    "h200": Gpu(
        "H200 SXM, 141 GB", 141 * GIGA, 989 * TERA, 67 * TERA, 4.8 * TERA, 450 * GIGA, 50 * GIGA,
        "NVIDIA H200 data sheet; DGX H200",
    ),
    "a100-40": Gpu(
        "A100 SXM, 40 GB", 40 * GIGA, 312 * TERA, 19.5 * TERA, 1.555 * TERA, 300 * GIGA, 25 * GIGA,
        "NVIDIA A100 data sheet; DGX A100: eight 200 Gb/s InfiniBand ports for eight GPUs",
    ),
    "a100-80": Gpu(
        "A100 SXM, 80 GB", 80 * GIGA, 312 * TERA, 19.5 * TERA, 2.039 * TERA, 300 * GIGA, 25 * GIGA,
        "NVIDIA A100 data sheet; DGX A100",
    ),
    "b200": Gpu(
        "B200, 180 GB", 180 * GIGA, 2250 * TERA, 75 * TERA, 8 * TERA, 900 * GIGA, 50 * GIGA,
        "NVIDIA DGX B200 data sheet, an eighth of the system each",
    ),
    "mi300x": Gpu(
        "MI300X, 192 GB", 192 * GIGA, 1307 * TERA, 163.4 * TERA, 5.3 * TERA, 448 * GIGA, 50 * GIGA,
        "AMD Instinct MI300X data sheet: seven links of 64 GB/s a direction; network of 400 Gb/s a GPU",
    ),
    "l40s": Gpu(
        "L40S, 48 GB", 48 * GIGA, 362 * TERA, 91.6 * TERA, 0.864 * TERA, 32 * GIGA, 12.5 * GIGA,
        "NVIDIA L40S data sheet: PCIe 4.0 x16; network of 100 Gb/s a GPU",
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
