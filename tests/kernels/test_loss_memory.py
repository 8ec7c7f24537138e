"""Peak memory at a size where the logits dominate, by the allocator's own events: exact and repeatable."""

import functools

import pytest
import torch

from megaokd.benchmark.fused import HeadProblem, fused, unfused
from megaokd.benchmark.logits import ours
from megaokd.benchmark.measure import peak_bytes
from megaokd.benchmark.problem import OKD, Problem
from megaokd.kernels import compiled, distillation_loss

CPU = torch.device("cpu")
TOKENS, VOCAB = 1024, 32000

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not compiled.is_available(CPU), reason="no C++ compiler")]


@pytest.fixture(autouse=True)
def _code_made_here() -> None:
    """Inductor lays code out for the sizes it first meets: made in another test for a few columns, it needs a buffer
    of a chunk's logits here. `auto` compiles for large calls alone."""
    torch.compiler.reset()


@functools.lru_cache(maxsize=1)
def _problem(dtype: torch.dtype) -> Problem:
    return Problem.create(TOKENS, VOCAB, dtype, CPU)


@pytest.mark.parametrize("objective", ["both", "student", "jsd"])
def test_loss_allocates_its_gradients_and_little_more(objective: str) -> None:
    call = ours(_problem(torch.float32), objective)
    assert peak_bytes(call, CPU) <= 0.01 * TOKENS * VOCAB * 4


def test_forward_alone_allocates_little() -> None:
    """Not hidden below the gradients, which come later."""
    problem = _problem(torch.float32)

    def forward() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        out = distillation_loss(problem.student, problem.teacher, problem.labels, student=OKD[0], teacher=OKD[1])
        return out.student_loss, ()

    assert peak_bytes(forward, CPU) <= 0.01 * TOKENS * VOCAB * 4


def test_fused_form_needs_a_fraction_of_the_logits() -> None:
    problem = HeadProblem.create(TOKENS, VOCAB, CPU, None)
    assert peak_bytes(fused(problem), CPU) <= 0.06 * peak_bytes(unfused(problem), CPU)
