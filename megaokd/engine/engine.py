"""DeepSpeed's part of the step: the sharded optimizer and the data-parallel reduction.

Used of it: ZeRO-1 (ZeRO-2 with one stage) and one coalesced reduction a step. Its gradient clipping, norms, mixed
precision, checkpoints and pipeline are switched off or left alone: its norm is reduced once per parameter group, which
hangs where a stage holds no online module; the reasons for the rest are in docs/design.md.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import get_total_norm

from megaokd.config import Optimizer, OptimizerGroup
from megaokd.engine import optimizer_state
from megaokd.engine.buckets import reduce_bucket_size
from megaokd.engine.gradients import sum_partial_gradients, sum_row_gradients, sum_tied_gradients
from megaokd.engine.monitors import without_monitors
from megaokd.engine.parameters import GROUPS, GroupName, TrainableParameter
from megaokd.errors import UserError
from megaokd.mesh import DeepSpeedTopology, ParallelMesh
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.rows import RowGroups

# What the engine decides itself; a value for one of these in the `deepspeed` section is refused.
_OWN_KEYS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer", "scheduler",
    "fp16", "bf16", "torch_autocast", "gradient_clipping", "pipeline", "amp", "data_types", "communication_data_type",
    "prescale_gradients", "gradient_predivide_factor", "zero_allow_untested_optimizer",
)  # fmt: skip
_OWN_ZERO_KEYS = ("stage", "compute_grad_norm", "offload_param", "offload_optimizer")


class TrainingEngine:
    """Accumulates, reduces and clips gradients, each group by its own norm, and takes the optimizer's step."""

    def __init__(
        self,
        modules: nn.Module,
        parameters: Sequence[TrainableParameter],
        options: Optimizer,
        mesh: ParallelMesh,
        tp: TensorParallel,
        rows: RowGroups | None = None,
        *,
        zero_stage: int,
        deepspeed_options: Mapping[str, Any],
    ) -> None:
        self.parameters = list(parameters)
        self.options: dict[GroupName, OptimizerGroup] = {"student": options.student, "online": options.online}
        self.mesh = mesh
        self.tp = tp
        self.rows = rows
        self.local_gradients_finite: torch.Tensor | None = None
        """Whether this rank's own backward gave finite gradients, before sums over ranks; None without parameters."""
        self._by_id = {id(item.parameter): item for item in self.parameters}
        self._group_names, groups = _optimizer_groups(self.parameters, self.options)
        self._engine = _start_deepspeed(
            modules,
            torch.optim.AdamW(groups),
            mesh,
            _deepspeed_config(zero_stage, mesh, deepspeed_options, sum(p.parameter.numel() for p in parameters)),
        )
        optimizer_state.create_state(self._engine.optimizer)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """One optimizer step's backward passes; on leaving, gradients are reduced over every copy of a parameter.

        DeepSpeed averages over the data-parallel ranks; losses are scaled by their number beforehand.
        """
        with self._engine.coalesce_grad_reduction():
            try:
                yield
                gradients = [item.parameter.grad for item in self.parameters if item.parameter.grad is not None]
                self.local_gradients_finite = get_total_norm(gradients).isfinite() if gradients else None
                sum_partial_gradients(self.parameters, self.tp)
                sum_row_gradients(self.parameters, self.rows)
                sum_tied_gradients(self.parameters, self.mesh)
            except BaseException:
                # DeepSpeed reduces on its way out all the same, and would wait there for ranks that never come, with
                # the error untold. This engine has made its last step.
                self._engine._flush_coalesced_reduction_zero12 = lambda _: None
                raise

    def square_norms(self) -> dict[GroupName, torch.Tensor]:
        """This rank's share of each group's squared gradient norm, fp64; the sum over the world is the whole."""
        sums = {name: torch.zeros((), dtype=torch.float64, device=self.mesh.device) for name in GROUPS}
        for item, gradient in self._reduced_gradients():
            sums[item.group] += gradient.double().square().sum() * item.share_of_norm
        return sums

    def clip(self, norms: Mapping[GroupName, float]) -> None:
        """Scale each group whose global norm exceeds its limit."""
        factors = {}
        for name, norm in norms.items():
            limit = self.options[name].clip
            factors[name] = min(1.0, limit / (norm + 1e-6)) if limit > 0.0 else 1.0
        for item, gradient in self._reduced_gradients():
            if factors[item.group] < 1.0:
                gradient.mul_(factors[item.group])

    def step(self, learning_rates: Mapping[GroupName, float]) -> None:
        """Take the optimizer's step and drop the gradients."""
        for name, group in zip(self._group_names, self._engine.optimizer.param_groups, strict=True):
            group["lr"] = learning_rates[name]
        self._engine.step()

    @property
    def zero_optimizer(self) -> Any:
        """DeepSpeed's ZeRO optimizer, for checkpoints."""
        return self._engine.optimizer

    def _reduced_gradients(self) -> Iterator[tuple[TrainableParameter, torch.Tensor]]:
        """(parameter, the part of its reduced gradient in this rank's ZeRO partition)."""
        optimizer = self._engine.optimizer
        for index, gradients in optimizer.averaged_gradients.items():
            real = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
            # An empty partition is one unmarked block of zeros: zip ends at the shorter side.
            for parameter, gradient in zip(optimizer.params_in_partition[index], real, strict=False):
                yield self._by_id[id(parameter)], gradient


def _optimizer_groups(
    parameters: Sequence[TrainableParameter], options: Mapping[GroupName, OptimizerGroup]
) -> tuple[list[GroupName], list[dict[str, Any]]]:
    """AdamW's parameter groups: each of ours with and without weight decay, those without a parameter left out."""
    names: list[GroupName] = []
    groups = []
    for name in GROUPS:
        for decays in (True, False):
            members = [p.parameter for p in parameters if p.group == name and p.decays == decays]
            if members:
                settings = options[name]
                names.append(name)
                groups.append(
                    {
                        "params": members,
                        "lr": settings.lr,
                        "betas": settings.betas,
                        "eps": settings.eps,
                        "weight_decay": settings.weight_decay if decays else 0.0,
                    }
                )
    return names, groups


def _deepspeed_config(
    zero_stage: int, mesh: ParallelMesh, options: Mapping[str, Any], num_trained: int
) -> dict[str, Any]:
    zero = options.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(f"deepspeed.zero_optimization = {zero!r}: expected a mapping of DeepSpeed's ZeRO options")
    taken = [key for key in _OWN_KEYS if key in options] + [
        f"zero_optimization.{key}" for key in _OWN_ZERO_KEYS if key in zero
    ]
    if taken:
        raise UserError(f"deepspeed.{taken[0]} is set by the training engine; remove it from the configuration")
    return {
        **without_monitors(options),
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "reduce_bucket_size": reduce_bucket_size(num_trained),
            **zero,
            "stage": zero_stage,
            "compute_grad_norm": False,
        },
    }


def _start_deepspeed(
    modules: nn.Module, optimizer: torch.optim.Optimizer, mesh: ParallelMesh, config: dict[str, Any]
) -> Any:
    if mesh.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # type: ignore[import-untyped, unused-ignore]
    from deepspeed.ops import __compatible_ops__

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch has begun to replace.
    warnings.filterwarnings("ignore", message=r".*is deprecated. Please use `torch.distributed", category=FutureWarning)
    # Shared-memory collectives would be compiled at the first start, and fail where there is no compiler.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if mesh.device.type == "cuda" else "gloo", verbose=False)
    try:
        engine, *_ = deepspeed.initialize(
            model=modules, optimizer=optimizer, config=config, mpu=DeepSpeedTopology(mesh), dist_init_required=False
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"the deepspeed section: {'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}"
        ) from None
    return engine
