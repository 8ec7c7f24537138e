"""The configuration: one YAML file of dataclasses, with dotted overrides.

Every key is declared here with its type, default, unit and meaning: docs/configuration.md is made from them
(docs/hooks/configuration_tables.py). pydantic checks the types; `load_config` turns what it finds into one sentence
that names the key, the line, the value and the nearest valid key.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from megaokd.methods import MethodName
from megaokd.option_types import check_steps
from megaokd.options.on_policy import OnPolicy
from megaokd.options.warnings import Warnings
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
    """`lora`: low-rank products on linear layers; `bottleneck`: behind decoder layers; `head`: one behind the final
    norm."""
    rank: Positive = 8
    """Width of a module's narrow place."""
    alpha: PositiveFloat = 16.0
    """A module's output is scaled by `alpha / rank`."""
    layers: Positive | None = None
    """How many of the teacher's last layers carry modules; `null`: a quarter, rounded up. Not with `head`."""
    targets: Annotated[tuple[LinearName, ...], Field(min_length=1)] | None = None
    """Of `lora`: which linear layers, out of `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`,
    `down_proj`; `null`: all that the teacher has."""

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
    """A folder that every process sees; runs may share it, with any teachers and data."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """`float32`: exactly what the layers gave; `bfloat16`: rounded, half the size."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Teacher:
    """The frozen teacher. Without `path` there is none: plain supervised training of the student."""

    path: str | None = None
    """Hugging Face folder (a supported family, safetensors, with its tokenizer), or a name on the Hub, `owner/name` or
    `owner/name@revision`; `null`: no teacher, plain supervised training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How the frozen weights are stored in memory; `bfloat16` needs `train.precision: bf16`."""
    online: OnlineModules | None = Field(default_factory=OnlineModules)
    """The trainable modules; `null` freezes the teacher altogether, which is plain distillation."""
    cache: TrunkCache | None = None
    """Keep the output of the layers below the first online module on disk; `null`: compute it in every step."""
    check_frozen_every: NonNegative = 0
    """Every N steps, compare a hash of the frozen weights in memory with the one at the start; 0: never."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Architecture:
    """A decoder of the Llama family. The vocabulary size comes from the tokenizer of the training data."""

    hidden_size: Positive = 256
    """Width of the residual stream."""
    num_layers: Positive = 4
    """Decoder layers."""
    num_heads: Positive = 4
    """Query heads."""
    num_kv_heads: Positive | None = None
    """Key and value heads, a divisor of `num_heads`; `null`: `num_heads`."""
    head_dim: Positive | None = None
    """Channels of a head, even; `null`: `hidden_size / num_heads`."""
    intermediate_size: Positive | None = None
    """MLP channels; `null`: 8/3 of `hidden_size`, rounded up to a multiple of 32."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies."""
    norm_eps: PositiveFloat = 1e-5
    """Epsilon of the RMS norms."""
    tied_head: bool = True
    """The head is the embedding."""
    attention_bias: bool = False
    """Biases in the attention's projections."""
    mlp_bias: bool = False
    """Biases in the MLP."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""
    max_positions: Positive = 2048
    """Longest sequence; at least `data.sequence_length`."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class FromTeacher:
    """A student that starts from weights of the teacher. What is not given is as in the teacher."""

    layers: Positive | tuple[NonNegative, ...] | None = None
    """How many of the teacher's layers, spread evenly with the first and the last among them; or which, counted from
    0."""
    hidden_size: Positive | None = None
    """The first channels of the residual stream."""
    num_heads: Positive | None = None
    """Query heads: the first of each KV head that is kept."""
    num_kv_heads: Positive | None = None
    """The first KV heads; `null`: as many as keep the teacher's query heads a KV head."""
    intermediate_size: Positive | None = None
    """The first MLP channels."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Student:
    """The model that is trained: from a Hugging Face folder, from the teacher, or from scratch with an architecture."""

    path: str | None = None
    """Hugging Face folder (safetensors), or a name on the Hub, to start from."""
    from_teacher: FromTeacher | None = None
    """Instead of `path`: start from a part of the teacher's weights."""
    architecture: Architecture = Field(default_factory=Architecture)
    """Used where neither of the other two is given; initialised from `train.seed`."""

    @model_validator(mode="after")
    def _check(self) -> "Student":
        # A resolved configuration has the defaults of what is not used: only other values are somebody's.
        if self.from_teacher is not None and self.architecture != Architecture():
            raise ValueError(
                "architecture is of a student from scratch, from_teacher has sizes of its own; leave out one"
            )
        return self


def _weights(*, ce: float, forward_kl: float) -> Weights:
    return {"ce": ce, "forward_kl": forward_kl}


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Objective:
    """L_s = sum of weighted terms for the student, L_t the same for the online modules (docs/design.md)."""

    student: Weights = Field(default_factory=lambda: _weights(ce=1.0, forward_kl=1.0))
    """What the student minimises; without a teacher only `ce` is left of it."""
    teacher: Weights = Field(default_factory=lambda: _weights(ce=1.0, forward_kl=0.1))
    """What the online modules minimise: at least one term beside the anchor. Without modules it is ignored."""
    temperature: PositiveFloat = 1.0
    """Divides both models' logits in the divergences, which are multiplied by its square; `ce` and `anchor` stay at
    1."""
    fused: bool = True
    """Heads and loss in chunks of tokens, so that the logits of a micro-batch never exist whole; `false`: all of them
    at once."""

    @model_validator(mode="after")
    def _check(self) -> "Objective":
        if ANCHOR in self.student:
            raise ValueError(f"{ANCHOR!r} ties the online modules to the original teacher: a term of objective.teacher")
        return self

    backend: Literal["auto", "triton", "compiled", "eager"] = "auto"
    """What computes the loss. `auto`: `triton` on a GPU; on a CPU `compiled` where a micro-batch has at least a million
    (2^20) logits and there is a C++ compiler, else `eager`; with `forward_kl_top` always `eager`. A named one that
    cannot run here is an error, never replaced."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Parallel:
    """The layout. Data parallelism is what is left of the world size: world / (tensor * pipeline)."""

    tensor: Positive = 1
    """Tensor-parallel processes; must suit heads, KV heads and MLP channels of both models."""
    pipeline: Positive = 1
    """Pipeline stages of processes; at most the layers of the shallower model."""
    virtual_stages: Positive = 1
    """Stages that one pipeline rank holds; more than 1 needs `schedule: interleaved1f1b`."""
    schedule: Literal["1f1b", "interleaved1f1b"] = "1f1b"
    """Order of the micro-batches in the pipeline."""
    sequence_parallel: bool = False
    """Outside the tensor-parallel regions each rank holds its part of the sequence."""
    student_tensor: Positive | Literal["auto"] = "auto"
    """Tensor-parallel processes that share the student's layers, a divisor of `tensor`: with fewer, groups of processes
    each take their part of a micro-batch's rows through the student, and `train.micro_batch` must be a multiple of
    `tensor` / `student_tensor`. `auto`: the number with which a step is predicted to be the shortest, told at the
    start; as `tensor` with `train.on_policy`."""
    recompute: bool = False
    """Recompute a decoder layer in backward instead of keeping its activations."""

    @model_validator(mode="after")
    def _check(self) -> "Parallel":
        if self.student_tensor != "auto" and self.tensor % self.student_tensor:
            fitting = [size for size in range(1, self.tensor + 1) if self.tensor % size == 0]
            raise ValueError(
                f"student_tensor={self.student_tensor} does not divide tensor={self.tensor}: one of {fitting}"
            )
        return self

    @property
    def student_ranks(self) -> int:
        """`student_tensor` as a number; before `auto` is settled, that of the teacher."""
        return self.tensor if self.student_tensor == "auto" else self.student_tensor

    @property
    def num_stages(self) -> int:
        """Stages of the whole pipeline."""
        return self.pipeline * self.virtual_stages


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class WeightedDataset:
    """A part of a mixture."""

    path: str
    """As `data.train` where it is one text."""
    weight: PositiveFloat = 1.0
    """Its share of the examples drawn, relative to the other parts."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Data:
    """Tokenized data sets, as `megaokd preprocess` writes them, or Megatron's."""

    train: str | Annotated[tuple[WeightedDataset, ...], Field(min_length=1)]
    """Folder of the training data or prefix of Megatron files; or a mixture, a list of `{path: .., weight: ..}`:
    weights are relative, 1 where absent."""
    validation: str | None = None
    """Folder of held-out data, made with the same tokenizer; `null`: no validation."""
    tokenizer: str | None = None
    """Folder of the tokenizer of Megatron datasets, which do not carry one."""
    sequence_length: Positive = 512
    """Most positions of an example; longer ones are cut at the end, and an example whose prompt fills them all is left
    out."""
    bucket: Positive = 32
    """A batch is as wide as the longest example of its global batch, rounded up to a multiple of this."""
    packing: bool = False
    """Several examples in a row of `sequence_length` positions, each seeing itself only and with positions of its own;
    batches are then counted in rows."""
    length_window: NonNegative = 0
    """The examples of so many steps are dealt to them by length, so that less is padding; 0: as they come. Not with
    `packing`."""

    @property
    def widest_batch(self) -> int:
        """Positions of the longest rows that there can be: sequence_length, rounded up to a multiple of bucket."""
        return -(-self.sequence_length // self.bucket) * self.bucket


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class OptimizerGroup:
    """AdamW and schedule of one parameter group."""

    lr: PositiveFloat = 1e-3
    """Learning rate after the warm-up."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: PositiveFloat = 1e-8
    """Epsilon of AdamW."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled; not applied to norms and biases."""
    clip: NonNegativeFloat = 1.0
    """Largest gradient norm of this group, measured over this group alone; 0: not clipped."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up, over the rest of `train.steps`."""
    warmup_steps: NonNegative = 0
    """Steps of a linear rise to `lr`."""
    min_lr_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """`cosine` and `linear` end at `lr` times this."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class OnlineGroup(OptimizerGroup):
    """The group of the online modules: gentler defaults, the same keys."""

    lr: PositiveFloat = 1e-4
    """A tenth of the student's."""
    weight_decay: NonNegativeFloat = 0.0
    """None."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Optimizer:
    """One group for the student, one for the online modules."""

    student: OptimizerGroup = Field(default_factory=OptimizerGroup)
    """The student's parameter group."""
    online: OnlineGroup = Field(default_factory=OnlineGroup)
    """The online modules' parameter group."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Train:
    """The loop."""

    steps: Positive
    """Optimizer steps of the whole run."""
    global_batch: Positive = 32
    """Examples of a step over all processes; a multiple of `micro_batch` x data-parallel ranks."""
    micro_batch: Positive = 8
    """Examples of one forward pass on one data-parallel rank."""
    seed: NonNegative = 0
    """Of the initial weights and of the order of the data."""
    on_policy: OnPolicy | None = None
    """Steps whose responses the student writes itself; `null`: never."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: matrix products in bf16 (autocast); weights, gradients and optimizer state stay fp32."""
    zero_stage: Literal[1, 2] = 1
    """DeepSpeed ZeRO stage; 2 needs `parallel.pipeline: 1`."""
    validate_every: NonNegative = 0
    """Steps between validations, and one after the last step; 0: never."""
    validation_batches: Positive | None = None
    """Global batches of a validation, the first ones; `null`: all of `data.validation`."""
    best_metric: str = "validation/student_ce"
    """The checkpoint with the lowest value of this metric (the highest, for an agreement) is kept beside the last
    ones."""
    early_stopping: NonNegative = 0
    """End after so many validations in a row without a better value; 0: never."""
    resume: Literal["auto", "never"] = "never"
    """`auto`: continue from the newest complete checkpoint of `checkpoint.folder`, start anew where there is none;
    `never`: refuse a folder that holds checkpoints."""
    timeout_s: Positive = 600
    """Seconds after which a collective that still waits fails, and the run ends."""
    lost_rank_s: Positive = 120
    """Seconds without a sign of life after which a rank is lost, and the others name it and end; 4 once a collective
    has failed."""
    profile: Annotated[str, BeforeValidator(check_steps)] | None = None
    """START:STOP: trace steps START to STOP - 1, as the logs number them, with torch's profiler: a file for each rank
    in `profile/` of `checkpoint.folder`; `null`: none."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Checkpoint:
    """Where and how often the run is saved."""

    folder: str
    """Where everything of the run is written; on several machines a file system that all of them share."""
    every: NonNegative = 0
    """Steps between checkpoints; 0: at the end and on SIGTERM only. A validation that is the best so far saves as
    well."""
    keep_last: Positive = 2
    """Newest checkpoints that are kept, beside the best one."""
    keep_every: NonNegative = 0
    """Checkpoints at multiples of so many steps are kept for good; a multiple of `every`. 0: none."""
    asynchronous: bool = True
    """Training stops only while its state is copied to host memory, of which it takes as much as a rank writes;
    `false`: until all is on disk."""
    export: bool = True
    """At the end write the student, as it is after the last step, to `folder/student` in Hugging Face format, and
    online modules of kind `lora` to `folder/teacher_adapter` as a LoRA adapter that `peft` loads onto the original
    teacher; `peft` has no form for the other kinds, which stay in the checkpoints."""
    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the student's weights are written there."""
    export_merged_teacher: bool = False
    """At the end also write the teacher with its online modules merged into its weights, to `folder/teacher` in Hugging
    Face format; in `teacher.dtype`. Needs `lora`: a bottleneck is not linear."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Logging:
    """What is written while the run goes on: TensorBoard events and log.jsonl in the checkpoint folder."""

    every: Positive = 10
    """Steps between lines of `log.jsonl` and points in TensorBoard."""
    tensorboard: bool = True
    """Write TensorBoard events to `folder/tensorboard`."""
    progress: bool = True
    """A progress bar on stderr; without a terminal ten lines a run. Messages and warnings are there without it."""
    samples: NonNegative = 0
    """Prompts of `data.validation` that the student continues, greedily, at a validation; not with a pipeline."""
    samples_every: Positive = 1
    """Validations between them."""
    warnings: Warnings = Field(default_factory=Warnings)
    """From when on a person is told that the run needs a look."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Config:
    """A whole run."""

    data: Data
    train: Train
    checkpoint: Checkpoint
    method: MethodName | None = None
    """A named method, which fills in `objective` and `teacher.online`; `null`: as they are given."""
    teacher: Teacher = Field(default_factory=Teacher)
    student: Student = Field(default_factory=Student)
    objective: Objective = Field(default_factory=Objective)
    parallel: Parallel = Field(default_factory=Parallel)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    logging: Logging = Field(default_factory=Logging)
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Passed to DeepSpeed as it is; keys that the engine sets itself are refused."""
