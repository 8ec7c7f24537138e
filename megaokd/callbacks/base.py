"""What the loop tells its watchers. All of them live on global rank 0."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, means over its global batch."""

    step: int
    """Steps done, this one included."""
    total_steps: int
    metrics: dict[str, float]
    norms: dict[str, float]
    learning_rates: dict[str, float]
    tokens: int
    """Loss tokens of the global batch."""
    input_tokens: int
    """Tokens of the global batch that went through the models, prompts included, padding not."""
    seconds: float
    memory_bytes: int
    data_seconds: float = 0.0
    origin: dict[str, float] = field(default_factory=dict)
    """With `train.on_policy`: whether the student wrote the responses, and the seconds that it took, on rank 0."""

    def scalars(self) -> dict[str, float]:
        """Grouped names and values, as the logs show them."""
        values = {f"train/{name}": value for name, value in self.metrics.items()}
        values.update({f"gradient_norm/{name}": value for name, value in self.norms.items()})
        values.update({f"learning_rate/{name}": value for name, value in self.learning_rates.items()})
        values["speed/tokens_per_second"] = self.input_tokens / self.seconds
        values["speed/loss_tokens_per_second"] = self.tokens / self.seconds
        values["speed/step_seconds"] = self.seconds
        values["speed/data_seconds"] = self.data_seconds
        values.update(self.origin)
        values["memory/peak_bytes"] = float(self.memory_bytes)
        return values


@dataclass(frozen=True)
class TextSample:
    """A prompt of the validation data, its response there, and the student's."""

    prompt: str
    reference: str
    student: str


@dataclass(frozen=True)
class ValidationRecord:
    """One pass over held-out data."""

    step: int
    metrics: dict[str, float]
    seconds: float
    module_norms: dict[str, float] = field(default_factory=dict)
    """How large each online module has become (`distill/module_norms.py`)."""
    samples: list[TextSample] = field(default_factory=list)


@dataclass(frozen=True)
class CheckpointRecord:
    """One checkpoint that is complete on disk."""

    step: int
    bytes: int
    """Of all ranks' files."""
    stall_seconds: float
    """How long training stood still: for a save before it that had not ended, and for the copy to host memory."""
    write_seconds: float
    """How long writing took: beside training, or part of the stall with `checkpoint.asynchronous: false`."""


@dataclass(frozen=True)
class WarningRecord:
    """Something that a person should act on."""

    step: int
    kind: str
    """What is watched, as in `logging.warnings`; of gradients also whose: `gradient_spike/online`."""
    seen: str
    """What was measured, and what it was compared with."""
    advice: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"step {self.step}: warning: {self.seen}. {self.advice}"


class Callback:
    """A watcher; override what is of interest."""

    def on_step(self, record: StepRecord) -> None:
        """After each optimizer step."""

    def on_validation(self, record: ValidationRecord) -> None:
        """After each validation."""

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        """After a checkpoint has become complete, which may be some steps later than its own."""

    def on_warning(self, record: WarningRecord) -> None:
        """When a check of the logged numbers says so (`warnings.py`)."""

    def on_message(self, text: str) -> None:
        """Something that a person should read."""

    def close(self) -> None:
        """The run is over, well or not."""
