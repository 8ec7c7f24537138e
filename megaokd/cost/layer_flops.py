"""Matrix-product FLOPs of one decoder layer and of online modules; a multiplication and an addition are two.

Attention is counted as whole squares of scores, as torch's own counter does: forward two products of that size,
backward five (the scores once more, and four gradients). Whether a product's backward runs follows autograd: the
gradient of an input that needs none is not made, which is what the lowest online layer saves.

Legend: B rows, S positions, T = B S, D hidden size, r rank of an online module.
"""

from dataclasses import dataclass
from functools import lru_cache

from megaokd.config import LinearName, OnlineModules
from megaokd.models.architecture import DecoderArchitecture


@dataclass(frozen=True)
class Work:
    """FLOPs by when they are done."""

    forward: int = 0
    backward: int = 0
    repeated: int = 0
    """Forward once more, in backward, where activations are recomputed."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.forward + other.forward, self.backward + other.backward, self.repeated + other.repeated)

    @property
    def total(self) -> int:
        """All of it."""
        return self.forward + self.backward + self.repeated


@dataclass
class _Tape:
    """Matrix products in the order of forward, and whether autograd records them."""

    tokens: int
    trains: bool
    """Whether the base matrices get gradients."""
    online: OnlineModules | None
    work: Work = Work()
    wanted: int = 0
    """Forward FLOPs in front of the last product whose inputs backward wants: recomputation stops there."""

    def product(self, inputs: int, outputs: int, *, of_input: bool, of_weight: bool) -> bool:
        """[T, inputs] x [inputs, outputs]; of_input, of_weight: which need a gradient -> whether the output does."""
        flops = 2 * self.tokens * inputs * outputs
        if of_input or of_weight:
            self.wanted = self.work.forward
        self.work += Work(flops, flops * (of_input + of_weight))
        return of_input or of_weight

    def linear(self, name: LinearName, inputs: int, outputs: int, needs: bool) -> bool:
        """A base matrix and its LoRA module, if it has one."""
        result = self.product(inputs, outputs, of_input=needs, of_weight=self.trains)
        if self.online is None or self.online.kind != "lora":
            return result
        if self.online.targets is not None and name not in self.online.targets:
            return result
        return self.narrow(self.online.rank, inputs, outputs, needs)

    def narrow(self, rank: int, inputs: int, outputs: int, needs: bool) -> bool:
        """The two matrices of an online module."""
        self.product(inputs, rank, of_input=needs, of_weight=True)
        return self.product(rank, outputs, of_input=True, of_weight=True)


@lru_cache(maxsize=4096)
def layer_work(
    arch: DecoderArchitecture,
    rows: int,
    width: int,
    *,
    needs: bool,
    trains: bool,
    online: OnlineModules | None = None,
    recompute: bool = False,
) -> Work:
    """One layer for B = rows and S = width.

    needs: whether the gradient of the layer's input is wanted; trains: whether its own weights are trained.
    online: the modules that this layer carries.
    """
    tape = _Tape(rows * width, trains, online)
    size, query, key = arch.hidden_size, arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    attends = [tape.linear("q_proj", size, query, needs)]
    attends += [tape.linear("k_proj", size, key, needs), tape.linear("v_proj", size, key, needs)]
    scores = 2 * rows * arch.num_heads * width * width * arch.head_dim
    tape.work += Work(2 * scores, 5 * scores * any(attends))
    attended = tape.linear("o_proj", query, size, any(attends)) or needs

    seen = needs if arch.parallel_residual else attended
    inner = [tape.linear("gate_proj", size, arch.intermediate_size, seen)] if arch.gated_mlp else []
    inner.append(tape.linear("up_proj", size, arch.intermediate_size, seen))
    result = tape.linear("down_proj", arch.intermediate_size, size, any(inner))
    if result and arch.output_norms:
        tape.wanted = tape.work.forward  # the norm behind the MLP wants its input
    result |= attended
    if online is not None and online.kind == "bottleneck":
        result = tape.narrow(online.rank, size, size, result)
    return tape.work + Work(repeated=tape.wanted) if recompute and result else tape.work


def bottleneck_work(rank: int, size: int, tokens: int, *, needs: bool) -> Work:
    """A bottleneck on T = tokens hidden states; needs: whether their gradient is wanted."""
    tape = _Tape(tokens, trains=False, online=None)
    tape.narrow(rank, size, size, needs)
    return tape.work
