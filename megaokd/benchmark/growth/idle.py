"""How long a rank of a pipeline computes while its schedule runs: the rest is waiting for the others."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage

from megaokd.benchmark.measure import synchronize
from megaokd.pipeline.schedule import Extras, PipelineRunner


class ObservedRunner(PipelineRunner):
    """The runner of a pipeline with a watch: forward and backward of its stages and the loss are work.

    On a GPU the watch waits for the device around each of them.
    """

    def __init__(self, runner: PipelineRunner) -> None:
        self.busy = 0.0
        """Seconds of work since the last `forward_backward` began."""
        self.span = 0.0
        """Seconds that it took."""
        super().__init__(
            runner.stages, runner.slots, self._timed(runner.loss), runner.parallel, runner.axis, runner.device
        )

    def forward_backward(
        self, tokens: torch.Tensor, labels: torch.Tensor, extras: Extras | None = None, *, scale: float
    ) -> None:
        """See `Runner`."""
        self.busy = 0.0
        start = time.perf_counter()
        super().forward_backward(tokens, labels, extras, scale=scale)
        synchronize(self.device)
        self.span = time.perf_counter() - start

    def _stage(self, module: nn.Module, index: int, shape: torch.Size) -> PipelineStage:
        stage = super()._stage(module, index, shape)
        for name in ("forward_one_chunk", "backward_one_chunk"):
            setattr(stage, name, self._timed(getattr(stage, name)))
        return stage

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **options)
            synchronize(self.device)
            self.busy += time.perf_counter() - start
            return result

        return timed
