"""What describes a decoder, whatever its family, and the layouts it can be split into."""

from dataclasses import dataclass
from typing import Literal

from megaokd import config
from megaokd.errors import UserError
from megaokd.mesh import divisors
from megaokd.models.rotary import Rotary

Activation = Literal["silu", "relu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class AttentionKind:
    """How the attention of a layer sees positions."""

    rotary: Rotary | None
    window: int | None
    """How many positions a query sees, its own among them; None: all up to its own."""


@dataclass(frozen=True, kw_only=True)
class DecoderArchitecture:
    """A decoder with grouped-query attention. Sizes are global, not per rank; the defaults are Llama's."""

    family: str = "llama"
    """`model_type` of its Hugging Face folder: how its config.json and its tensors are named (`families/`)."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rotary: Rotary | None
    """None: learned positions, added to the embeddings."""
    local_rotary: Rotary | None = None
    """Of the layers with a window, where it differs."""
    windows: tuple[int | None, ...] = ()
    """The window of each layer; empty: none has one."""
    position_offset: int = 0
    """Rows of the learned positions in front of position 0."""
    scaled_embeddings: bool = False
    """Embeddings are multiplied by sqrt(hidden_size), the head is not."""
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    """Added to the weights of RMS norms."""
    output_norms: bool = False
    """Norms also behind attention and MLP, before they are added to the residual stream."""
    qk_norm: bool = False
    """An RMS norm over each query and key head, before the rotation."""
    parallel_residual: bool = False
    """Attention and MLP both see the layer's input."""
    query_pre_attn_scalar: float | None = None
    """Scores are divided by its square root; None: head_dim."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    gated_mlp: bool = True
    tied_head: bool = True
    dropout: float = 0.0
    """The largest dropout probability of its config.json. Nothing is ever dropped here."""
    initializer_range: float = 0.02
    max_positions: int = 2048

    @classmethod
    def from_config(cls, options: config.Architecture, vocab_size: int) -> "DecoderArchitecture":
        """Fill in the defaults that depend on other values."""
        if options.head_dim is None and options.hidden_size % options.num_heads:
            raise UserError(
                f"student.architecture: hidden_size={options.hidden_size} is not a multiple of "
                f"num_heads={options.num_heads}; choose one of {divisors(options.hidden_size)} heads or give head_dim"
            )
        head_dim = options.head_dim or options.hidden_size // options.num_heads
        result = cls(
            vocab_size=vocab_size,
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
            num_heads=options.num_heads,
            num_kv_heads=options.num_kv_heads or options.num_heads,
            head_dim=head_dim,
            intermediate_size=options.intermediate_size or -(-options.hidden_size * 8 // (3 * 32)) * 32,
            rotary=Rotary(dim=head_dim, theta=options.rope_theta),
            norm_eps=options.norm_eps,
            tied_head=options.tied_head,
            qkv_bias=options.attention_bias,
            output_bias=options.attention_bias,
            mlp_bias=options.mlp_bias,
            initializer_range=options.initializer_range,
            max_positions=options.max_positions,
        )
        result.check("student.architecture")
        return result

    def attention_kind(self, layer: int) -> AttentionKind:
        """How the attention of a layer sees positions."""
        window = self.windows[layer] if self.windows else None
        rotary = self.local_rotary if window is not None and self.local_rotary is not None else self.rotary
        return AttentionKind(rotary, window)

    def check(self, name: str) -> None:
        """Refuse numbers that no decoder can have."""
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"{name}: num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                f"choose one of {divisors(self.num_heads)} KV heads"
            )
        for rotary in (self.rotary, self.local_rotary):
            if rotary is not None and rotary.dim % 2:
                raise UserError(f"{name}: {rotary.dim} rotary channels of a head (head_dim) must be even")

    def tensor_sizes(self) -> list[int]:
        """The numbers of tensor-parallel ranks that the decoder can be split over."""
        return [
            size
            for size in divisors(self.num_heads)
            if self.intermediate_size % size == 0
            and (self.num_kv_heads % size == 0 or size % self.num_kv_heads == 0)
            and size <= self.vocab_size
        ]

    def check_layout(self, name: str, *, tensor: int, stages: int, key: str = "parallel.tensor") -> None:
        """Refuse a layout that does not fit, naming the number, whose key is `key`, and the choices that would fit."""
        fitting = self.tensor_sizes()
        if tensor not in fitting:
            raise UserError(
                f"{key}={tensor} does not fit the {name}: {self.num_heads} attention heads, "
                f"{self.num_kv_heads} KV heads, {self.intermediate_size} MLP channels, {self.vocab_size} tokens; "
                f"possible values: {fitting}"
            )
        if stages > self.num_layers:
            raise UserError(
                f"parallel.pipeline x parallel.virtual_stages = {stages} stages, but the {name} has only "
                f"{self.num_layers} layers; use at most {self.num_layers} stages"
            )
