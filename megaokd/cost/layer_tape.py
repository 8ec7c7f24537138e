"""One decoder layer, followed operation by operation: what autograd keeps for backward, what crosses a region's border.

The same walk as `layer_flops` makes, over the code of `models/` and `distill/`. What an operation keeps is torch's rule
for it, and a tensor that several operations keep counts once:

    norm       its input and 1 / rms; its result before the weight, where the weight is trained
    linear     its input where the weight is trained, its weight where the input wants a gradient
    attention  queries, keys, values as it gets them (turned, KV heads repeated), its result, a log-sum a head
    gate * up  the gate before its activation, up; down_proj keeps the product

Under bf16 the residual stream stays fp32, so each linear layer behind a norm keeps a bf16 copy of its own of the norm's
result, and of a weight that is stored in fp32 a bf16 copy too.

Of Llama in fp32, with t ranks, H heads of E channels, I MLP channels, D hidden size, bytes a token and layer:

    4 (6 D + 4 H E / t + 3 I / t) + 4 H / t + 8

and with sequence parallelism the four of the six D that lie outside the regions are divided by t.

Legend: T tokens of a micro-batch, To those of them that a rank holds outside the regions (`layer_shape`).
"""

from dataclasses import dataclass, field

from megaokd.config import LinearName, OnlineModules
from megaokd.cost.layer_shape import Shape
from megaokd.cost.traffic import Kind, Traffic
from megaokd.models.architecture import DecoderArchitecture

RESIDUAL = 4
"""Bytes of a number of the residual stream: fp32 in either precision."""


@dataclass
class Activation:
    """A tensor [tokens, channels] on the tape."""

    tokens: int
    channels: int
    itemsize: int
    grad: bool
    kept: bool = False


@dataclass
class Tape:
    """Bytes kept, and communication in the order of forward."""

    shape: Shape
    trains: bool = False
    online: OnlineModules | None = None
    kept: int = 0
    forward: list[Traffic] = field(default_factory=list)
    backward: Traffic = field(default_factory=Traffic)
    wanted: int = 0
    """Forward communication in front of the last tensor that is kept: recomputation stops there."""

    def keep_bytes(self, count: int) -> None:
        """A tensor of its own."""
        self.kept += count
        self.wanted = len(self.forward)

    def keep(self, x: Activation) -> None:
        """A tensor that others may keep as well."""
        self.keep_bytes(0 if x.kept else x.tokens * x.channels * x.itemsize)
        x.kept = True

    def norm(self, x: Activation, *, layer: bool = False) -> Activation:
        """An RMS norm, or a layer norm; the result is fp32."""
        grad = x.grad or self.trains
        wide = x if x.itemsize == RESIDUAL else Activation(x.tokens, x.channels, RESIDUAL, x.grad)
        if x.grad or (layer and grad):
            self.keep(wide)
            self.keep_bytes(RESIDUAL * x.tokens * (2 if layer else 1))
        if self.trains and not layer:
            self.keep_bytes(RESIDUAL * x.tokens * x.channels)
        return Activation(x.tokens, x.channels, RESIDUAL, grad)

    def linear(self, name: LinearName, x: Activation, outputs: int) -> Activation:
        """A base matrix [outputs, x.channels] and its LoRA module, if it has one; local sizes."""
        if self.trains:
            self._keep_input(x)
        if x.grad:
            self._keep_weight(x.channels * outputs, self.shape.stored)
        y = Activation(x.tokens, outputs, self.shape.product, x.grad or self.trains)
        online = self.online
        if online is None or online.kind != "lora" or (online.targets is not None and name not in online.targets):
            return y
        return self.narrow(x, online.rank, outputs)

    def narrow(self, x: Activation, rank: int, outputs: int, *, activated: bool = False) -> Activation:
        """The two matrices of an online module, with an activation in between or without."""
        self._keep_input(x)
        if x.grad:
            self._keep_weight(x.channels * rank, 4)
        self.keep_bytes(x.tokens * rank * self.shape.product * (2 if activated else 1))
        self._keep_weight(rank * outputs, 4)
        return Activation(x.tokens, outputs, self.shape.product, grad=True)

    def bottleneck(self, x: Activation, rank: int) -> None:
        """A bottleneck on the residual stream."""
        if x.grad:
            self.keep(x)
            self.keep_bytes(RESIDUAL * x.tokens)
        self.narrow(Activation(x.tokens, x.channels, RESIDUAL, x.grad), rank, x.channels, activated=True)

    def enter(self, x: Activation) -> Activation:
        """Into the region: an all-reduce backward, or an all-gather forward and a reduce-scatter backward."""
        if self.shape.tensor == 1:
            return x
        size = self.shape.tokens * x.channels * x.itemsize
        if not self.shape.sequence_parallel:
            self._communicate("all-reduce", size, backward=True, happens=x.grad)
            return x
        self._communicate("all-gather", size)
        self._communicate("reduce-scatter", size, backward=True, happens=x.grad)
        return Activation(self.shape.tokens, x.channels, x.itemsize, x.grad)

    def leave(self, x: Activation) -> Activation:
        """Out of the region: an all-reduce forward, or a reduce-scatter forward and an all-gather backward."""
        result = Activation(self.shape.outside, x.channels, x.itemsize, x.grad)
        if self.shape.tensor == 1:
            return result
        size = self.shape.tokens * x.channels * x.itemsize
        if not self.shape.sequence_parallel:
            self._communicate("all-reduce", size)
            return result
        self._communicate("reduce-scatter", size)
        self._communicate("all-gather", size, backward=True, happens=x.grad)
        return result

    def _communicate(self, kind: Kind, size: int, *, backward: bool = False, happens: bool = True) -> None:
        if backward and happens:
            self.backward += Traffic.of(kind, self.shape.group, size)
        elif not backward:
            self.forward.append(Traffic.of(kind, self.shape.group, size))

    def _keep_input(self, x: Activation) -> None:
        """Of a linear layer: as it is, or a bf16 copy of its own."""
        if x.itemsize == self.shape.product:
            self.keep(x)
        else:
            self.keep_bytes(x.tokens * x.channels * self.shape.product)

    def _keep_weight(self, elements: int, stored: int) -> None:
        """The weight itself costs nothing, a bf16 copy of it does."""
        self.keep_bytes(0 if stored == self.shape.product else elements * self.shape.product)


def sum_traffic(parts: list[Traffic]) -> Traffic:
    """All of it."""
    total = Traffic()
    for part in parts:
        total += part
    return total


@dataclass(frozen=True)
class LayerCost:
    """What one pass of a micro-batch through a layer, or through a model's slice, keeps and sends on a rank."""

    kept: int = 0
    """Bytes kept for backward between forward and backward."""
    again: int = 0
    """Bytes that recomputation keeps once more while backward is in this layer."""
    forward: Traffic = field(default_factory=Traffic)
    backward: Traffic = field(default_factory=Traffic)
    """Recomputation included."""

    def __add__(self, other: "LayerCost") -> "LayerCost":
        return LayerCost(
            self.kept + other.kept,
            max(self.again, other.again),
            self.forward + other.forward,
            self.backward + other.backward,
        )

    def times(self, count: int) -> "LayerCost":
        """As many layers."""
        again = self.again if count else 0
        return LayerCost(self.kept * count, again, self.forward.times(count), self.backward.times(count))


def finished(tape: Tape, *, recompute_from: int | None = None) -> LayerCost:
    """The tape's cost; recompute_from: bytes of the input that alone is kept where the layer is recomputed."""
    forward = sum_traffic(tape.forward)
    if recompute_from is None:
        return LayerCost(tape.kept, 0, forward, tape.backward)
    again = sum_traffic(tape.forward[: tape.wanted])
    return LayerCost(recompute_from, tape.kept, forward, tape.backward + again)


def residual_stream(arch: DecoderArchitecture, shape: Shape, *, grad: bool) -> Activation:
    """The hidden states between layers."""
    return Activation(shape.outside, arch.hidden_size, RESIDUAL, grad)
