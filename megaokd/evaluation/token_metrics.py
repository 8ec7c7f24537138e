"""Per-token measures over the response tokens: cross-entropy, divergence to a teacher, agreement with it.

With q the model's and p the teacher's distribution at a loss token whose label is y:

    cross-entropy -log q[y]    forward KL  sum_v p (log p - log q)    reverse KL  sum_v q (log q - log p)

each summed over all loss tokens in float64 and divided by their number once. N: loss tokens, V: vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megaokd.data.batch import IGNORE
from megaokd.errors import UserError
from megaokd.evaluation.calibration import Calibration
from megaokd.evaluation.examples import Example, LossBatch, loss_batches
from megaokd.evaluation.ranks import Ranks
from megaokd.kernels import token_measures
from megaokd.models.decoder import Decoder
from megaokd.parallel.vocab import VocabParallelHead

# Loss tokens whose logits exist at a time, [rows, V / tensor] of each model, whatever the batch.
_ROWS = 512
_NAMES = {
    "student_ce": "cross_entropy",
    "forward_kl": "forward_kl",
    "reverse_kl": "reverse_kl",
    "top1_agreement": "top1_agreement",
    "teacher_ce": "teacher_cross_entropy",
}
"""Of the loss's metrics those that are reported, and how."""


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


class _Sums:
    """What is known of the loss tokens so far."""

    def __init__(self) -> None:
        self.tokens = 0
        self.values: defaultdict[str, float] = defaultdict(float)
        self.calibration = Calibration()

    def join(self, other: "_Sums") -> None:
        self.tokens += other.tokens
        self.calibration.join(other.calibration)
        for name, value in other.values.items():
            self.values[name] += value


@torch.inference_mode()
def measure_tokens(
    model: Decoder,
    examples: Sequence[Example],
    ranks: Ranks,
    *,
    pad_id: int,
    teacher: Decoder | None = None,
    max_batch_tokens: int = 4096,
) -> TokenMetrics:
    """Measure `model` on the loss tokens of `examples`, and against `teacher` where one is given.

    Both models are split alike over the tensor-parallel ranks; the data-parallel ranks take every n-th batch each, and
    the batches are those of one process. At most `max_batch_tokens` positions (or one example) are in flight at a time
    on a rank. Collectives: those of the forward passes, the one of `token_measures` for each 512 loss tokens, and at
    the end one gather of sums over the data-parallel ranks. Every rank returns the same.

    Raises:
        UserError: there is no loss token, or a measure is not finite.
    """
    own = _Sums()
    for batch in ranks.own(loss_batches(examples, max_batch_tokens, pad_id)):
        _add_batch(own, model, teacher, batch, ranks)
    sums = _Sums()
    for part in ranks.gather(own):
        sums.join(part)
    if sums.tokens == 0:
        raise UserError("the data set has no response token to evaluate on")
    means = {name: value / sums.tokens for name, value in sums.values.items()}
    for name, value in means.items():
        if value != value or value in (float("inf"), float("-inf")):
            raise UserError(f"{name} is {value}: the model's weights or logits are not finite")
    return TokenMetrics(tokens=sums.tokens, calibration_error=sums.calibration.error(), **means)


def _add_batch(sums: _Sums, model: Decoder, teacher: Decoder | None, batch: LossBatch, ranks: Ranks) -> None:
    input_ids, keep = batch.input_ids.to(ranks.device), batch.labels != IGNORE
    labels = batch.labels[keep].to(ranks.device)
    models = [model] if teacher is None else [model, teacher]
    embedding = model.embed_tokens
    assert embedding is not None
    hidden = [decoder.kept_tokens(decoder(input_ids), keep) for decoder in models]
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        logits = [_head(decoder)(state[rows]) for decoder, state in zip(models, hidden, strict=True)]
        measures = token_measures(
            logits[0],
            None if teacher is None else logits[1],
            labels[rows],
            group=ranks.tp.group,
            vocab_start=embedding.vocab.start,
            vocab_size=embedding.vocab.size,
        )
        sums.calibration.add(measures["confidence"], measures["hit"])
        for name, reported in _NAMES.items():
            if name in measures:
                sums.values[reported] += measures[name].sum().item()
    sums.tokens += len(labels)


def _head(model: Decoder) -> VocabParallelHead:
    assert model.head is not None
    return model.head
