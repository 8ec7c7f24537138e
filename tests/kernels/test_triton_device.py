"""The Triton kernels on a GPU, where there is one, at the widths that matter there."""

import pytest
import torch
from loss_cases import MIXES, assert_near, backward, expect, make_example, mixed_loss

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("vocab", [1, 2053, 32063])
@pytest.mark.parametrize("num_tokens", [3, 1100])
def test_matches_reference(mix: str, temperature: float, vocab: int, num_tokens: int) -> None:
    """Rows in parts and whole; fp32 against the fp64 reference, at logits of a bf16 model."""
    if num_tokens * vocab > 1 << 23:
        num_tokens = (1 << 23) // vocab
    example = make_example(num_tokens, vocab)
    example.student, example.teacher = example.student.bfloat16().float(), example.teacher.bfloat16().float()
    expected = expect(example, mix, temperature)
    for dtype in (torch.float32, torch.bfloat16):
        student, teacher = (x.to(DEVICE, dtype).requires_grad_() for x in (example.student, example.teacher))
        labels = example.labels.to(DEVICE)
        out = mixed_loss(mix, student, teacher, labels, temperature=temperature, backend="triton")
        grads = backward(out, example, student, teacher)
        assert_near(out.student_loss.cpu(), expected.student_loss, 3e-6)
        assert_near(out.teacher_loss.cpu(), expected.teacher_loss, 3e-6)
        for ours, exact in zip(grads, (expected.student_grad, expected.teacher_grad), strict=True):
            allowed = 3e-6 * (1 + exact.abs().max())
            if dtype == torch.bfloat16:
                allowed = allowed + (exact.bfloat16().double() - exact).abs() + 2.0**-8 * exact.abs()
            assert bool(((ours.cpu().double() - exact).abs() <= allowed).all())
