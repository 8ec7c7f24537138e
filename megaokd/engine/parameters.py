"""Every trainable parameter of this rank, with all that reduction, clipping and checkpoints need to know about it."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from megaokd.models.decoder import VOCABULARY, Decoder
from megaokd.parallel.layout import TensorLayout
from megaokd.pipeline.models import DistillationModels

GroupName = Literal["student", "online"]
GROUPS: tuple[GroupName, ...] = ("student", "online")


@dataclass(frozen=True)
class TrainableParameter:
    """A parameter, its name in the whole model, its slice and its optimizer group."""

    name: str
    parameter: nn.Parameter
    layout: TensorLayout
    group: GroupName
    tied: bool = False
    """An embedding or head of a model that ties the two: the two ends of a pipeline each hold one."""
    tied_copy: bool = False
    """A head that repeats an embedding held by the first stage: counted and saved there."""

    @property
    def decays(self) -> bool:
        """Weight decay is for matrices; norms and biases have one dimension."""
        return self.parameter.ndim > 1

    @property
    def share_of_norm(self) -> float:
        """What this rank's squared gradient adds to the global one: copies count once together."""
        return 0.0 if self.tied_copy else 1.0 / self.layout.copies


def trainable_parameters(models: DistillationModels) -> list[TrainableParameter]:
    """Student parameters, then those of the online modules, in stage order."""
    found = [item for part in models.students for item in parameters_of(part, "student")]
    return found + [item for part in models.teachers for item in parameters_of(part, "online")]


def parameters_of(decoder: Decoder, group: GroupName) -> list[TrainableParameter]:
    """Those of one slice of a model."""
    return [
        TrainableParameter(
            name=f"{group}.{name}",
            parameter=parameter,
            layout=layout,
            group=group,
            tied=decoder.arch.tied_head and name in VOCABULARY,
            tied_copy=name == "head.weight" and decoder.holds_tied_copy,
        )
        for name, parameter, layout in decoder.named_layouts()
        if parameter.requires_grad
    ]
