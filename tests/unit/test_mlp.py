"""The gated product: values and gradients of autograd's own, bit for bit, with less kept."""

import pytest
import torch

from megaokd.models.architecture import Activation
from megaokd.models.mlp import Gated, activate

ACTIVATIONS: tuple[Activation, ...] = ("silu", "relu", "gelu", "gelu_tanh")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("moves_gate", "moves_up"), [(True, True), (True, False), (False, True)])
def test_gated_is_what_autograd_makes(
    activation: Activation, dtype: torch.dtype, moves_gate: bool, moves_up: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up, upstream = (torch.randn(3, 50, 7, generator=generator).to(dtype) * 3 for _ in range(3))
    gate[0, 0] = 0.0
    gate.requires_grad_(moves_gate)
    up.requires_grad_(moves_up)
    moved = [x for x in (gate, up) if x.requires_grad]
    expected = activate(gate, activation) * up
    found = Gated.apply(gate, up, activation)
    assert torch.equal(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, moved, upstream), torch.autograd.grad(expected, moved, upstream), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_gated_keeps_its_inputs_alone() -> None:
    gate, up = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        Gated.apply(gate, up, "silu")
    assert kept == [gate.data_ptr(), up.data_ptr()]


def test_gated_against_finite_differences() -> None:
    gate, up = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, y: Gated.apply(x, y, "silu"), (gate, up))
