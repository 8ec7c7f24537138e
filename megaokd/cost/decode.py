"""How long a model takes to write responses: one pass over the prompts, then one pass a token (`generation/`).

A pass takes

    calls       what the host needs to start its kernels; a token's are as many as a whole batch's
    memory      this rank's weights and the keys and values so far, read once
    products    its FLOPs, by the rate of matrix products
    collectives two all-reduces a layer, the embedding's, and three to choose the token, of latency alone

A device runs kernels while the host starts the next ones: a pass lasts as long as the slower of the two, and the
device's time is the longer of memory and products, and its collectives. On a CPU the calls come on top. Products of few
rows are taken to be as fast as those of many, a collective's bytes and activations to cost nothing.
"""

from dataclasses import dataclass
from typing import Literal

from megaokd.cost.hardware import Assumptions, Gpu
from megaokd.cost.layer_flops import layer_work
from megaokd.models.architecture import DecoderArchitecture
from megaokd.precision import Precision

LAYER_CALLS: dict[Precision, int] = {"fp32": 40, "bf16": 49}
"""Kernels of a layer for one token, views left out: Llama's, other families' are a few more or less."""
TOKEN_CALLS: dict[Precision, int] = {"fp32": 40, "bf16": 42}
"""Those of embedding, positions, last norm, head and the draw of the token."""
LOGIT_BYTES = 68
"""Read and written for each logit to draw a token."""
CHOICE_COLLECTIVES = 3
ITEMSIZE: dict[Precision, int] = {"fp32": 4, "bf16": 2}

Bound = Literal["calls", "memory", "products", "collectives"]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a machine is counted on for; a rank's."""

    flops: float
    """A second, in matrix products."""
    bandwidth: float
    """Bytes a second, of the memory that weights lie in."""
    call_s: float
    """Of the host, for a kernel."""
    collective_s: float = 0.0
    overlaps: bool
    """Whether the host starts kernels while others run."""

    @classmethod
    def of_gpu(cls, gpu: Gpu, assumptions: Assumptions, precision: Precision) -> "Rates":
        """From the data sheet and what is assumed beside it."""
        return cls(
            flops=(gpu.bf16 if precision == "bf16" else gpu.fp32) * assumptions.efficiency,
            bandwidth=gpu.bandwidth * assumptions.link_efficiency,
            call_s=assumptions.call_s,
            collective_s=assumptions.latency_s,
            overlaps=True,
        )


@dataclass(frozen=True, kw_only=True)
class Responses:
    """What is written, all at once, by one group of tensor-parallel ranks. Rows come to their end together."""

    rows: int
    prompt: int
    """Tokens of each row's prompt."""
    response: int
    """Tokens of each row's response."""
    tensor: int = 1
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass or of several, by what they are for."""

    calls: float = 0.0
    memory: float = 0.0
    products: float = 0.0
    collectives: float = 0.0
    total: float = 0.0

    def __add__(self, other: "Pass") -> "Pass":
        return Pass(
            self.calls + other.calls,
            self.memory + other.memory,
            self.products + other.products,
            self.collectives + other.collectives,
            self.total + other.total,
        )

    @property
    def bound(self) -> Bound:
        """The largest part."""
        parts: dict[Bound, float] = {
            "calls": self.calls,
            "memory": self.memory,
            "products": self.products,
            "collectives": self.collectives,
        }
        return max(parts, key=parts.__getitem__)


@dataclass(frozen=True)
class GenerationTime:
    """Seconds."""

    prompts: Pass
    tokens: Pass
    """The passes of all tokens but each row's first, which comes from the prompts' pass."""

    @property
    def total(self) -> float:
        """Of all responses."""
        return self.prompts.total + self.tokens.total


def generation_time(arch: DecoderArchitecture, responses: Responses, rates: Rates) -> GenerationTime:
    """The time of `generate` for these responses, sampled."""
    prompts = _pass(arch, responses, rates, responses.prompt, responses.prompt)
    tokens = Pass()
    for written in range(1, responses.response):
        tokens += _pass(arch, responses, rates, 1, responses.prompt + written)
    return GenerationTime(prompts, tokens)


def _pass(arch: DecoderArchitecture, responses: Responses, rates: Rates, width: int, context: int) -> Pass:
    """One pass over `width` tokens of each row, which see up to `context` tokens."""
    rows, ranks, precision = responses.rows, responses.tensor, responses.precision
    itemsize = ITEMSIZE[precision]
    matrices = layer_weights(arch) * arch.num_layers + arch.vocab_size * arch.hidden_size
    kept = 2 * rows * context * max(1, arch.num_kv_heads // ranks) * arch.head_dim * arch.num_layers
    logits = rows * arch.vocab_size * LOGIT_BYTES
    memory = ((matrices / ranks + kept) * itemsize + logits / ranks) / rates.bandwidth

    scores = 4 * rows * width * context * arch.num_heads * arch.head_dim
    flops = (2 * rows * width * layer_weights(arch) + scores) * arch.num_layers
    flops += 2 * rows * arch.vocab_size * arch.hidden_size
    products = flops / ranks / rates.flops

    num_collectives = (2 * arch.num_layers + 1 + CHOICE_COLLECTIVES) * (ranks > 1)
    collectives = num_collectives * rates.collective_s
    num_calls = arch.num_layers * LAYER_CALLS[precision] + TOKEN_CALLS[precision] + num_collectives
    calls = num_calls * rates.call_s
    device = max(memory, products) + collectives
    total = max(calls, device) if rates.overlaps else calls + device
    return Pass(calls, memory, products, collectives, total)


def layer_weights(arch: DecoderArchitecture) -> int:
    """Elements of a layer's matrices."""
    scores = 4 * arch.num_heads * arch.head_dim
    return (layer_work(arch, 1, 1, needs=False, trains=False).forward - scores) // 2
