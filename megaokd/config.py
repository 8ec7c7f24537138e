"""The configuration: one YAML file of dataclasses, with dotted overrides.

Every key is declared here with its type, default and unit. pydantic checks the types; `load_config` turns what it
finds into one sentence that names the key, the line, the value and the nearest valid key.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from megaokd.methods import MethodName
from megaokd.terms import ANCHOR, check_term

_STRICT = ConfigDict(extra="forbid")

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
TermName = Annotated[str, AfterValidator(check_term)]
Weights = dict[TermName, NonNegativeFloat]

LinearName = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class OnlineModules:
    """The trainable part of the teacher (docs/design.md, "Online modules")."""

    kind: Literal["lora", "bottleneck", "head"] = "lora"
    """On linear layers; behind decoder layers; behind the final norm."""
    rank: Positive = 8
    """Width of the module's narrow place."""
    alpha: PositiveFloat = 16.0
    """The module's output is scaled by alpha / rank."""
    layers: Positive | None = None
    """How many of the last decoder layers carry modules; default: a quarter, rounded up. Not for `head`."""
    targets: Annotated[tuple[LinearName, ...], Field(min_length=1)] | None = None
    """Of `lora`: the linear layers; default: all."""

    @model_validator(mode="after")
    def _check(self) -> "OnlineModules":
        if self.kind != "lora" and self.targets is not None:
            raise ValueError(f"targets are of kind=lora; with kind={self.kind} leave them out")
        if self.kind == "head" and self.layers is not None:
            raise ValueError("kind=head is one module behind the final norm; leave layers out")
        return self


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class TrunkCache:
    """What the teacher's frozen lower layers give for each example, kept on disk (docs/design.md)."""

    path: str
    """A folder that every process sees; runs may share it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """float32: exactly what the layers gave; bfloat16: rounded, half the size."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Teacher:
    """The frozen teacher. Without `path` there is none: plain supervised training of the student."""

    path: str | None = None
    """A Hugging Face model folder (safetensors), or a name on the Hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How the frozen weights are stored in memory."""
    online: OnlineModules | None = Field(default_factory=OnlineModules)
    """Online modules; null freezes the teacher altogether (plain distillation)."""
    cache: TrunkCache | None = None
    """Keep the output of the layers below the first online module; null: compute it in every step."""
    check_frozen_every: NonNegative = 0
    """Compare a hash of the frozen weights with the one at the start every N steps; 0: never."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Architecture:
    """A decoder of the Llama family. The vocabulary size comes from the tokenizer of the training data."""

    hidden_size: Positive = 256
    num_layers: Positive = 4
    num_heads: Positive = 4
    num_kv_heads: Positive | None = None
    """Default: num_heads."""
    head_dim: Positive | None = None
    """Default: hidden_size / num_heads."""
    intermediate_size: Positive | None = None
    """Default: 8/3 of hidden_size, rounded up to a multiple of 32."""
    rope_theta: PositiveFloat = 10000.0
    norm_eps: PositiveFloat = 1e-5
    tied_head: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: PositiveFloat = 0.02
    max_positions: Positive = 2048


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class FromTeacher:
    """A student that starts from weights of the teacher. What is not given is as in the teacher."""

    layers: Positive | tuple[NonNegative, ...] | None = None
    """How many of the teacher's layers, spread evenly with the first and the last among them; or which."""
    hidden_size: Positive | None = None
    """The first channels of the residual stream."""
    num_heads: Positive | None = None
    """The first query heads of each KV head that is kept."""
    num_kv_heads: Positive | None = None
    """The first KV heads."""
    intermediate_size: Positive | None = None
    """The first MLP channels."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Student:
    """The model that is trained: from a Hugging Face folder, from the teacher, or from scratch with an architecture."""

    path: str | None = None
    """A Hugging Face model folder (safetensors), or a name on the Hub."""
    from_teacher: FromTeacher | None = None
    """Instead of `path`: start from a part of the teacher's weights."""
    architecture: Architecture = Field(default_factory=Architecture)
    """Used where neither of the other two is given."""


def _weights(*, ce: float, forward_kl: float) -> Weights:
    return {"ce": ce, "forward_kl": forward_kl}


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Objective:
    """L_s = sum of weighted terms for the student, L_t the same for the online modules (docs/design.md)."""

    student: Weights = Field(default_factory=lambda: _weights(ce=1.0, forward_kl=1.0))
    teacher: Weights = Field(default_factory=lambda: _weights(ce=1.0, forward_kl=0.1))
    temperature: PositiveFloat = 1.0
    fused: bool = True
    """Heads and loss in chunks of tokens: a micro-batch's logits never exist whole; false: all logits at once."""

    @model_validator(mode="after")
    def _check(self) -> "Objective":
        if ANCHOR in self.student:
            raise ValueError(f"{ANCHOR!r} ties the online modules to the original teacher: a term of objective.teacher")
        return self

    backend: Literal["auto", "triton", "compiled", "eager"] = "auto"
    """What computes the loss (kernels/README.md); one that cannot run here is an error, never replaced."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Parallel:
    """The layout. Data parallelism is what is left of the world size: world / (tensor * pipeline)."""

    tensor: Positive = 1
    pipeline: Positive = 1
    virtual_stages: Positive = 1
    """Stages a pipeline rank holds; more than 1 needs schedule: interleaved1f1b."""
    schedule: Literal["1f1b", "interleaved1f1b"] = "1f1b"
    sequence_parallel: bool = False
    """Split activations between the tensor-parallel regions along the sequence."""
    recompute: bool = False
    """Recompute each decoder layer in backward instead of keeping its activations."""

    @property
    def num_stages(self) -> int:
        """Stages of the whole pipeline."""
        return self.pipeline * self.virtual_stages


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class WeightedDataset:
    """A part of a mixture."""

    path: str
    weight: PositiveFloat = 1.0
    """Its share of the examples drawn, relative to the other parts."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Data:
    """Tokenized data sets, as `megaokd preprocess` writes them, or Megatron's."""

    train: str | Annotated[tuple[WeightedDataset, ...], Field(min_length=1)]
    """One, or a list of {path, weight} to draw from."""
    validation: str | None = None
    tokenizer: str | None = None
    """The tokenizer of Megatron data sets, which do not carry one."""
    sequence_length: Positive = 512
    """Longer examples are cut at the end."""
    bucket: Positive = 32
    """A batch is padded to the longest example of the global batch, rounded up to a multiple of this."""
    packing: bool = False
    """Several examples in a row of sequence_length positions, each seeing itself only; batches are counted in rows."""
    length_window: NonNegative = 0
    """Steps whose examples are dealt to them by length, so that less is padding; 0: as they come."""

    @property
    def widest_batch(self) -> int:
        """Positions of the longest rows that there can be: sequence_length, rounded up to a multiple of bucket."""
        return -(-self.sequence_length // self.bucket) * self.bucket


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class OptimizerGroup:
    """AdamW and schedule of one parameter group."""

    lr: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    """Not applied to norms and biases."""
    clip: NonNegativeFloat = 1.0
    """Largest gradient norm of this group; 0: not clipped."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: NonNegative = 0
    min_lr_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """The schedule ends at lr * min_lr_ratio."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class OnlineGroup(OptimizerGroup):
    """The group of the online modules: gentler defaults, the same keys."""

    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.0


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Optimizer:
    """One group for the student, one for the online modules."""

    student: OptimizerGroup = Field(default_factory=OptimizerGroup)
    online: OnlineGroup = Field(default_factory=OnlineGroup)


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Train:
    """The loop."""

    steps: Positive
    global_batch: Positive = 32
    """Examples an optimizer step, over all ranks."""
    micro_batch: Positive = 8
    """Examples a forward pass, on each data-parallel rank."""
    seed: NonNegative = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: fp32 weights and gradients, bf16 matrix products (autocast)."""
    zero_stage: Literal[1, 2] = 1
    validate_every: NonNegative = 0
    validation_batches: Positive | None = None
    """Global batches a validation; default: the whole validation set."""
    best_metric: str = "validation/student_ce"
    """The lowest value of this metric (the highest, for an agreement) decides which checkpoint is kept as best."""
    early_stopping: NonNegative = 0
    """Stop after this many validations without a better value; 0: never."""
    resume: Literal["auto", "never"] = "never"
    """auto: continue from the newest complete checkpoint of checkpoint.folder, if there is one."""
    timeout_s: Positive = 600
    """A collective that waits longer ends the run."""
    lost_rank_s: Positive = 120
    """A rank that gives no sign of life for so many seconds is lost: the others name it and end."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Checkpoint:
    """Where and how often the run is saved."""

    folder: str
    every: NonNegative = 0
    """Steps; 0: only at the end and on SIGTERM."""
    keep_last: Positive = 2
    keep_every: NonNegative = 0
    """Checkpoints at multiples of so many steps are kept for good; 0: none."""
    asynchronous: bool = True
    """Write in the background from a copy in host memory; false: training waits until all is on disk."""
    export: bool = True
    """At the end write the student as a Hugging Face folder (folder/student), online modules as a PEFT adapter."""
    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the student's weights are written there."""
    export_merged_teacher: bool = False
    """At the end also write the teacher with its online modules merged (folder/teacher)."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Logging:
    """What is written while the run goes on: TensorBoard events and log.jsonl in the checkpoint folder."""

    every: Positive = 10
    tensorboard: bool = True
    progress: bool = True


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Config:
    """A whole run."""

    data: Data
    train: Train
    checkpoint: Checkpoint
    method: MethodName | None = None
    """A named method: fills in objective.student, objective.teacher and teacher.online (megaokd/methods.py)."""
    teacher: Teacher = Field(default_factory=Teacher)
    student: Student = Field(default_factory=Student)
    objective: Objective = Field(default_factory=Objective)
    parallel: Parallel = Field(default_factory=Parallel)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    logging: Logging = Field(default_factory=Logging)
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Passed to DeepSpeed as it is; keys that the engine sets itself are refused."""
