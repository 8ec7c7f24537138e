"""Running a batch through the stages: forward and backward, or forward only.

With one stage it is a loop over micro-batches. With more, a schedule of torch.distributed.pipelining; shapes are given
statically, since the library's own inference costs an extra forward and cannot follow a change of length. One schedule
per batch length is built and kept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

from megaokd.config import Parallel
from megaokd.errors import UserError
from megaokd.mesh import Axis
from megaokd.pipeline.stage import Hidden, Slot

LossFunction = Callable[..., torch.Tensor]
"""(hidden states of the last stage, labels [b, S], scale=...) -> scalar."""
Extras = Mapping[str, torch.Tensor]


class Runner(Protocol):
    """Runs a batch of [M, b, S] tokens and labels: M micro-batches of b rows. The loss gets labels as they come.

    `extras` are keyword arguments of this rank's stages, [M, b, ...] each, which no stage sends on: `positions`, those
    of packed rows, and `trunk`, what a cache knows of the teacher.
    """

    def forward_backward(
        self, tokens: torch.Tensor, labels: torch.Tensor, extras: Extras | None = None, *, scale: float
    ) -> None:
        """Accumulate the gradients of `scale` x the summed loss into the parameters of this rank's stages."""
        ...

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor, extras: Extras | None = None) -> None:
        """Call the loss function for what it records; no gradients."""
        ...


def build_runner(
    stages: Sequence[nn.Module],
    slots: tuple[Slot, ...],
    loss: LossFunction,
    parallel: Parallel,
    axis: Axis,
    device: torch.device,
) -> Runner:
    """The runner of a layout: `stages` are the ones that this rank holds, lowest first."""
    if parallel.pipeline == 1:
        return MicroBatchLoop(stages[0], loss)
    return PipelineRunner(stages, slots, loss, parallel, axis, device)


def check_micro_batches(parallel: Parallel, micro_batches: int) -> None:
    """Refuse a number of micro-batches that the schedule cannot run."""
    if parallel.virtual_stages > 1 and parallel.schedule != "interleaved1f1b":
        raise UserError(
            f"parallel.virtual_stages={parallel.virtual_stages} needs parallel.schedule=interleaved1f1b, "
            f"not {parallel.schedule}"
        )
    if parallel.schedule == "interleaved1f1b" and parallel.pipeline == 1:
        raise UserError("parallel.schedule=interleaved1f1b needs parallel.pipeline of at least 2")
    interleaved = parallel.schedule == "interleaved1f1b"
    if parallel.pipeline > 1 and (
        micro_batches < parallel.pipeline or (interleaved and micro_batches % parallel.pipeline)
    ):
        raise UserError(
            f"parallel.pipeline={parallel.pipeline} with {parallel.schedule} needs "
            f"{'a multiple of' if interleaved else 'at least'} {parallel.pipeline} micro-batches a step, but "
            f"train.global_batch / (train.micro_batch x data-parallel size) is {micro_batches}; "
            "raise train.global_batch or lower train.micro_batch"
        )


def check_zero_stage(parallel: Parallel, zero_stage: int) -> None:
    """Refuse ZeRO-2 with a pipeline."""
    if zero_stage == 2 and parallel.pipeline > 1:
        raise UserError("train.zero_stage=2 needs parallel.pipeline=1; use zero_stage=1 with pipeline stages")


def check_bucket(parallel: Parallel, bucket: int) -> None:
    """Refuse lengths that sequence parallelism cannot split."""
    if parallel.sequence_parallel and bucket % parallel.tensor:
        raise UserError(
            f"data.bucket={bucket} must be a multiple of parallel.tensor={parallel.tensor} with "
            "parallel.sequence_parallel, so that every length can be split"
        )


class MicroBatchLoop:
    """One stage: gradient accumulation over micro-batches."""

    def __init__(self, stage: nn.Module, loss: LossFunction) -> None:
        self.stage = stage
        self.loss = loss

    def forward_backward(
        self, tokens: torch.Tensor, labels: torch.Tensor, extras: Extras | None = None, *, scale: float
    ) -> None:
        """See `Runner`."""
        for hidden, micro_labels in self._outputs(tokens, labels, extras):
            self.loss(hidden, micro_labels, scale=scale).backward()

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor, labels: torch.Tensor, extras: Extras | None = None) -> None:
        """See `Runner`."""
        for hidden, micro_labels in self._outputs(tokens, labels, extras):
            self.loss(hidden, micro_labels, scale=0.0)

    def _outputs(
        self, tokens: torch.Tensor, labels: torch.Tensor, extras: Extras | None
    ) -> Iterator[tuple[Hidden, torch.Tensor]]:
        for index, (micro_tokens, micro_labels) in enumerate(zip(tokens, labels, strict=True)):
            keywords = {name: values[index] for name, values in (extras or {}).items()}
            yield self.stage(micro_tokens, **keywords), micro_labels


MAX_SCHEDULES = 8
"""Batch lengths whose schedules are kept: each holds receive buffers for every micro-batch of a step."""


class PipelineRunner:
    """Several stages: 1F1B, or interleaved 1F1B where a rank holds more than one.

    The schedules of the `MAX_SCHEDULES` lengths used last are kept; every rank sees the same lengths in the same order,
    so all drop the same one.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        slots: tuple[Slot, ...],
        loss: LossFunction,
        parallel: Parallel,
        axis: Axis,
        device: torch.device,
    ) -> None:
        self.stages = stages
        self.slots = slots
        self.loss = loss
        self.parallel = parallel
        self.axis = axis
        self.device = device
        self.num_stages = parallel.num_stages
        self._schedules: dict[tuple[torch.Size, bool], PipelineScheduleSingle | PipelineScheduleMulti] = {}
        self._stages: dict[tuple[torch.Size, bool], list[PipelineStage]] = {}
        """Those of each schedule."""

    def forward_backward(
        self, tokens: torch.Tensor, labels: torch.Tensor, extras: Extras | None = None, *, scale: float
    ) -> None:
        """See `Runner`."""
        schedule = self._schedule(tokens.shape, train=True)
        arguments, target = self._feed(tokens, labels)
        keywords = _keywords(extras)
        schedule.step(*arguments, target=target, return_outputs=False, loss_kwargs={"scale": scale}, **keywords)

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor, labels: torch.Tensor, extras: Extras | None = None) -> None:
        """See `Runner`."""
        schedule = self._schedule(tokens.shape, train=False)
        arguments, target = self._feed(tokens, labels)
        keywords = _keywords(extras)
        schedule.eval(*arguments, target=target, return_outputs=False, loss_kwargs={"scale": 0.0}, **keywords)
        # What a stage keeps for backward goes with its backward; here there is none, and it stayed to the next call.
        for stage in self._stages[tokens.shape, False]:
            stage.clear_runtime_states()

    def _feed(self, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        """Tokens for the rank with the first stage, labels for the one with the last; the schedule cuts them again."""
        first, last = self.axis.rank == 0, self.axis.rank == self.axis.size - 1
        return (tokens.flatten(0, 1),) if first else (), labels.flatten(0, 1) if last else None

    def _schedule(self, shape: torch.Size, *, train: bool) -> PipelineScheduleSingle | PipelineScheduleMulti:
        key = (shape, train)
        if key in self._schedules:
            self._schedules[key] = self._schedules.pop(key)  # now the one used last
        else:
            if len(self._schedules) == MAX_SCHEDULES:
                oldest = next(iter(self._schedules))
                del self._schedules[oldest], self._stages[oldest]
            stages = self._stages[key] = [
                self._stage(module, self.axis.rank + position * self.axis.size, shape)
                for position, module in enumerate(self.stages)
            ]
            if self.parallel.schedule == "interleaved1f1b":
                self._schedules[key] = ScheduleInterleaved1F1B(
                    list(stages), shape[0], loss_fn=self.loss, scale_grads=False
                )
            else:
                self._schedules[key] = Schedule1F1B(stages[0], shape[0], loss_fn=self.loss, scale_grads=False)
        return self._schedules[key]

    def _stage(self, module: nn.Module, index: int, shape: torch.Size) -> PipelineStage:
        _, batch, sequence = shape
        tokens = torch.empty(batch, sequence, dtype=torch.int64, device="meta")
        inputs = (tokens,) if index == 0 else self._hidden_metadata(index - 1, batch, sequence)
        outputs = self._hidden_metadata(index, batch, sequence)
        return PipelineStage(
            module, index, self.num_stages, self.device, input_args=inputs, output_args=outputs, group=self.axis.group
        )

    def _hidden_metadata(self, stage: int, batch: int, sequence: int) -> tuple[torch.Tensor, ...]:
        """What `stage` puts out: shape, and whether the next stage owes it a gradient."""
        return tuple(
            torch.empty(
                batch // slot.row_groups,
                sequence // slot.sequence_parts,
                slot.hidden_size,
                device="meta",
                requires_grad=stage >= slot.grad_from_stage,
            )
            for slot in self.slots
            if stage >= slot.sent_from_stage
        )


def _keywords(extras: Extras | None) -> dict[str, Any]:
    """Keyword arguments of the stages; the schedule cuts them into micro-batches and gives each stage its own."""
    return {name: values.flatten(0, 1) for name, values in (extras or {}).items()}
