"""The numbers that describe a decoder of the Llama family, and the layouts it can be split into."""

from dataclasses import dataclass

from megaokd import config
from megaokd.errors import UserError
from megaokd.mesh import divisors


@dataclass(frozen=True, kw_only=True)
class DecoderArchitecture:
    """A decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Sizes are global, not per rank."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied_head: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
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
        result = cls(
            vocab_size=vocab_size,
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
            num_heads=options.num_heads,
            num_kv_heads=options.num_kv_heads or options.num_heads,
            head_dim=options.head_dim or options.hidden_size // options.num_heads,
            intermediate_size=options.intermediate_size or -(-options.hidden_size * 8 // (3 * 32)) * 32,
            rope_theta=options.rope_theta,
            norm_eps=options.norm_eps,
            tied_head=options.tied_head,
            attention_bias=options.attention_bias,
            mlp_bias=options.mlp_bias,
            initializer_range=options.initializer_range,
            max_positions=options.max_positions,
        )
        result.check("student.architecture")
        return result

    def check(self, name: str) -> None:
        """Refuse numbers that no decoder can have."""
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"{name}: num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                f"choose one of {divisors(self.num_heads)} KV heads"
            )
        if self.head_dim % 2:
            raise UserError(f"{name}: head_dim={self.head_dim} must be even for rotary positions")

    def check_layout(self, name: str, *, tensor: int, stages: int) -> None:
        """Refuse a layout that does not fit, naming the number and the choices that would fit."""
        fitting = [
            size
            for size in divisors(self.num_heads)
            if self.intermediate_size % size == 0
            and (self.num_kv_heads % size == 0 or size % self.num_kv_heads == 0)
            and size <= self.vocab_size
        ]
        if tensor not in fitting:
            raise UserError(
                f"parallel.tensor={tensor} does not fit the {name}: {self.num_heads} attention heads, "
                f"{self.num_kv_heads} KV heads, {self.intermediate_size} MLP channels, {self.vocab_size} tokens; "
                f"possible values: {fitting}"
            )
        if stages > self.num_layers:
            raise UserError(
                f"parallel.pipeline x parallel.virtual_stages = {stages} stages, but the {name} has only "
                f"{self.num_layers} layers; use at most {self.num_layers} stages"
            )
