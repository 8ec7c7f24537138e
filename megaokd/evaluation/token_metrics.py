"""Per-token measures over the response tokens: cross-entropy, divergence to a teacher, agreement with it.

With q the model's and p the teacher's distribution at a loss token whose label is y:

    cross-entropy -log q[y]    forward KL  sum_v p (log p - log q)    reverse KL  sum_v q (log q - log p)

each summed over all loss tokens in float64 and divided by their number once. N: loss tokens, V: vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from megaokd.data.batches import IGNORE
from megaokd.errors import UserError
from megaokd.evaluation.calibration import Calibration
from megaokd.evaluation.examples import Example, LossBatch, loss_batches

# Rows of [rows, V] that are normalised at a time: bounds the fp32 temporaries whatever the batch.
_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class TokenMetrics:
    """Means over `tokens` loss tokens, in nats; what needs a teacher is None without one."""

    tokens: int
    cross_entropy: float
    calibration_error: float
    """Expected calibration error of the likeliest token, 0 to 1."""
    forward_kl: float | None = None
    reverse_kl: float | None = None
    top1_agreement: float | None = None
    teacher_cross_entropy: float | None = None


@torch.inference_mode()
def measure_tokens(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    vocab_size: int,
    pad_id: int,
    teacher: PreTrainedModel | None = None,
    max_batch_tokens: int = 4096,
) -> TokenMetrics:
    """Measure `model` on the loss tokens of `examples`, and against `teacher` where one is given.

    Columns of the logits from `vocab_size` on are padding and belong to no distribution. At most
    `max_batch_tokens` positions (or one example) are in flight at a time.

    Raises:
        UserError: there is no loss token, or a measure is not finite.
    """
    sums: dict[str, float] = {}
    tokens = 0
    calibration = Calibration()
    for batch in loss_batches(examples, max_batch_tokens, pad_id):
        labels = batch.labels[batch.labels != IGNORE].to(model.device)
        tokens += len(labels)
        logits = _loss_logits(model, batch, vocab_size)
        teacher_logits = None if teacher is None else _loss_logits(teacher, batch, vocab_size)
        for start in range(0, len(labels), _ROWS):
            rows = slice(start, start + _ROWS)
            log_q = F.log_softmax(logits[rows].float(), dim=-1)
            calibration.add(log_q, labels[rows])
            part = _sums(log_q, None if teacher_logits is None else teacher_logits[rows], labels[rows])
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value
    if tokens == 0:
        raise UserError("the data set has no response token to evaluate on")
    means = {name: value / tokens for name, value in sums.items()}
    for name, value in means.items():
        if value != value or value in (float("inf"), float("-inf")):
            raise UserError(f"{name} is {value}: the model's weights or logits are not finite")
    return TokenMetrics(tokens=tokens, calibration_error=calibration.error(), **means)


def _loss_logits(model: PreTrainedModel, batch: LossBatch, vocab_size: int) -> Tensor:
    """Logits [N, V] at the batch's loss positions; only columns of the batch that hold one are projected."""
    is_loss = batch.labels != IGNORE
    columns = is_loss.any(0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch.input_ids.to(model.device),
        attention_mask=batch.attention_mask.to(model.device),
        use_cache=False,
        logits_to_keep=columns.to(model.device),
    ).logits
    selected: Tensor = logits[is_loss[:, columns].to(model.device)][:, :vocab_size]
    return selected


def _sums(log_q: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> dict[str, float]:
    result = {"cross_entropy": F.nll_loss(log_q, labels, reduction="none")}
    if teacher_logits is not None:
        log_p = F.log_softmax(teacher_logits.float(), dim=-1)
        result["teacher_cross_entropy"] = F.nll_loss(log_p, labels, reduction="none")
        result["forward_kl"] = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        result["reverse_kl"] = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
        result["top1_agreement"] = log_q.argmax(-1) == log_p.argmax(-1)
    return {name: value.double().sum().item() for name, value in result.items()}
