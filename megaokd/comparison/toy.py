"""What divergences make of several modes that a student cannot hold all: one Gaussian fitted to a mixture of three.

The axis is cut into a vocabulary, so that the losses are the ones of training. Expectations over labels are exact: a
token for each label, weighted by its probability. Nothing is random.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megaokd.kernels import distillation_loss

_WIDTH, _NUM_TOKENS = 6.0, 61
_MODES = ((-3.5, 0.3, 0.4), (0.0, 0.3, 0.35), (3.5, 0.3, 0.25))
"""Mean, standard deviation and weight of each."""
_STEPS, _LEARNING_RATE = 400, 0.05
FITS: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]] = {
    "forward KL": ({"forward_kl": 1.0}, {}),
    "reverse KL": ({"reverse_kl": 1.0}, {}),
    "JSD": ({"jsd": 1.0}, {}),
    "OKD, pull 1": ({"forward_kl": 1.0}, {"ce": 1.0, "forward_kl": 1.0}),
    "OKD, pull 5": ({"forward_kl": 1.0}, {"ce": 1.0, "forward_kl": 5.0}),
}
"""Name -> the student's terms, those of a teacher that moves."""
TOY_WORDS = (
    "An illustration, the same in every report and no result of this grid: one Gaussian, a student that cannot hold "
    f"what its teacher holds, is fitted to a mixture of three on a vocabulary of {_NUM_TOKENS} places, with the losses "
    "of training and exact expectations over labels. Forward KL spreads over all modes and puts mass where the teacher "
    "has none. Reverse KL takes one mode and gives up the others. With OKD the teacher moves as well, held by "
    "cross-entropy on the mixture and pulled at by the student. Grey: the original teacher; line: the student; dashed: "
    "the teacher where it has moved.",
    "Mass covered is the sum of min(teacher, student). A mode is found where the student has a tenth of its mass or "
    "more. Mass between modes is the student's that lies further than three standard deviations from each. Divergences "
    "are to the original teacher, in nats; how far the teacher moved is a total variation.",
)


@dataclass(frozen=True)
class ToyFit:
    """One student at the end; distributions are fp64 [V]."""

    name: str
    student: Tensor
    teacher: Tensor
    """What it was distilled from at the end."""
    covered: float
    """sum min(p_0, q): the mass of the original teacher that the student has too."""
    modes: int
    """Modes of whose mass the student has a tenth or more."""
    moved: float
    """Total variation between the teacher at the end and the original one."""
    stray: float
    """The student's mass further than three standard deviations from every mode."""
    forward_kl: float
    reverse_kl: float
    """To the original teacher, nats."""


def positions() -> Tensor:
    """Where the tokens lie on the axis, fp64 [V]."""
    return torch.linspace(-_WIDTH, _WIDTH, _NUM_TOKENS, dtype=torch.float64)


def original() -> Tensor:
    """The mixture p_0, fp64 [V]."""
    x = positions()
    density = sum(weight / sd * torch.exp(-(((x - mean) / sd) ** 2) / 2) for mean, sd, weight in _MODES)
    assert isinstance(density, Tensor)
    return density / density.sum()


def fit_all() -> list[ToyFit]:
    """One fit for each of `FITS`. A second or two."""
    return [_fit(name, *terms) for name, terms in FITS.items()]


def _fit(name: str, student_terms: Mapping[str, float], teacher_terms: Mapping[str, float]) -> ToyFit:
    """Both sides by Adam at once, as in training; a teacher that moves has a free logit for each token."""
    x, p_0 = positions(), original()
    # Mean and log of the standard deviation, from the middle of the axis and as wide as half of it.
    student = torch.tensor([0.0, 1.1], dtype=torch.float64, requires_grad=True)
    teacher = p_0.log().requires_grad_(bool(teacher_terms))
    parameters = [student, *([teacher] if teacher_terms else [])]
    optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    labels = torch.arange(_NUM_TOKENS)
    for _ in range(_STEPS):
        output = distillation_loss(
            _gaussian(x, student).expand(_NUM_TOKENS, -1),
            teacher.expand(_NUM_TOKENS, -1),
            labels,
            student=student_terms,
            teacher=teacher_terms or None,
            token_weight=p_0,
            backend="eager",
        )
        loss = output.student_loss.sum()
        if teacher_terms:
            loss = loss + output.teacher_loss.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    q = torch.softmax(_gaussian(x, student.detach()), 0)
    return _measure(name, q, torch.softmax(teacher.detach(), 0))


def _gaussian(x: Tensor, parameters: Tensor) -> Tensor:
    """Logits [V]."""
    mean, log_sd = parameters.unbind()
    return -(((x - mean) / log_sd.exp()) ** 2) / 2


def _measure(name: str, q: Tensor, p: Tensor) -> ToyFit:
    x, p_0 = positions(), original()
    near = [(x - mean).abs() <= 3 * sd for mean, sd, _ in _MODES]
    stray = ~torch.stack(near).any(0)
    return ToyFit(
        name=name,
        student=q,
        teacher=p,
        covered=torch.minimum(p_0, q).sum().item(),
        modes=sum(bool(q[part].sum() >= p_0[part].sum() / 10) for part in near),
        moved=(p - p_0).abs().sum().item() / 2,
        stray=q[stray].sum().item(),
        forward_kl=(p_0 * (p_0.log() - q.log())).sum().item(),
        reverse_kl=(q * (q.log() - p_0.log())).sum().item(),
    )
