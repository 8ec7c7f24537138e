"""Losses of other libraries, imported where they are installed; what cannot be imported is named with its reason."""

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # student and teacher logits [N, V], labels [N] -> sum over the tokens


@dataclass(frozen=True)
class Peer:
    """A library's loss with the objective it computes; `adds_entropy`: its value includes the teacher's entropy."""

    name: str
    package: str
    objective: str
    load: Callable[[], Loss]
    adds_entropy: bool = False


def _trl(beta: float) -> Loss:
    trainer = importlib.import_module("trl.experimental.gkd").GKDTrainer

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = trainer.generalized_jsd_loss(
            student.unsqueeze(0), teacher.unsqueeze(0), labels.unsqueeze(0), beta=beta, reduction="sum"
        )
        return value

    return loss


def _torchtune() -> Loss:
    module = importlib.import_module("torchtune.modules.loss").ForwardKLWithChunkedOutputLoss(num_output_chunks=8)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        chunks = [x.unsqueeze(0).chunk(8, dim=1) for x in (student, teacher)]
        value: Tensor = module(list(chunks[0]), list(chunks[1]), labels.unsqueeze(0)) * len(labels)
        return value

    return loss


def _modelopt() -> Loss:
    module = importlib.import_module("modelopt.torch.distill.losses").LogitsDistillationLoss(reduction="sum")

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = module(student, teacher)
        return value

    return loss


PEERS = (
    Peer("TRL generalized JSD, beta 0", "trl", "student", lambda: _trl(0.0)),
    Peer("TRL generalized JSD, beta 0.5", "trl", "jsd", lambda: _trl(0.5)),
    Peer("torchtune chunked forward KL", "torchtune", "student", _torchtune, adds_entropy=True),
    Peer("ModelOpt logits KL", "nvidia-modelopt", "student", _modelopt),
)


def load_peers() -> tuple[list[tuple[Peer, Loss]], dict[str, str]]:
    """The peers that can be imported here, and why each of the others cannot."""
    present, absent = [], {}
    for peer in PEERS:
        try:
            present.append((peer, peer.load()))
        except Exception as error:  # an import may fail in any way
            absent[peer.name] = _reason(error)
    if not torch.cuda.is_available():
        absent["Liger fused linear JSD"] = "no GPU"
    return present, absent


def _reason(error: BaseException) -> str:
    """What lies at the bottom: torchtune, for one, says that a package is missing whose import merely failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def versions() -> str:
    """Of the packages that were looked for."""
    found = []
    for package in sorted({peer.package for peer in PEERS} | {"liger-kernel", "megatron-core"}):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)
