"""The next token of each row, from logits that are split over the tensor-parallel ranks; the vocabulary never meets.

Sampling is by inversion: the probabilities of all tokens are laid end to end in the order of their ids, and one number
a row, uniform in [0, 1), says where to look. Rank r owns the ids from `start` on, so that its tokens lie behind those
of the ranks before it, and the order is the same for every number of ranks. Probabilities are whole numbers here, in
units of 2^-44 of the likeliest token's: their sums do not depend on the order of summation. The tokens are then those
of one process, up to the rounding of the logits themselves: where two ranks sum a layer's products in another order,
logits differ in their last bits, and about one draw in a million may lie so near to a border that it changes sides.

Shapes: B rows, V' tokens of the vocabulary on this rank.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from megaokd.generation.options import GenerationOptions
from megaokd.parallel.region import TensorParallel

_UNIT = 2.0**44
"""A likeliest token's mass. 2^18 tokens as likely as it still fit into 63 bits."""
_DIGIT_BITS, _DIGITS = 10, 3
"""A probability of at most 1 has 30 bits as an fp32 number."""


@dataclass(frozen=True)
class Selection:
    """Chooses tokens from this rank's logits.

    Collectives over the tensor-parallel group, for each token: greedy, one all-gather of [2, B] fp64. Sampling, an
    all-reduce of [B] fp32, an all-gather of [B] int64 and an all-reduce of [B] int64; top-k adds an all-gather of
    [B, k] fp32, top-p three all-reduces of [B, 1024] int64. None where the group has one rank.
    """

    options: GenerationOptions
    tp: TensorParallel
    start: int
    """The id of this rank's first token."""
    vocab_size: int
    """Ids from here on do not exist."""

    def __call__(self, logits: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
        """logits [B, V'] and, unless greedy, uniform: fp64 [B] in [0, 1) -> ids, int64 [B], the same on every rank."""
        logits = logits.float()
        existing = self.vocab_size - self.start
        if existing < logits.shape[1]:
            logits = logits.clone()
            logits[:, max(existing, 0) :] = -torch.inf
        if self.options.greedy:
            return self._likeliest(logits)
        assert uniform is not None
        return self._draw(self._masses(logits), uniform)

    def _likeliest(self, logits: torch.Tensor) -> torch.Tensor:
        """Of equals the one with the lowest id."""
        values, tokens = logits.max(dim=1)
        tokens = tokens + self.start
        if self.tp.size == 1:
            return tokens
        values, tokens = self._gather(torch.stack((values.double(), tokens.double()))).unbind(1)
        first = values.argmax(dim=0, keepdim=True)
        return tokens.gather(0, first).squeeze(0).long()

    def _masses(self, logits: torch.Tensor) -> torch.Tensor:
        """int64 [B, V']: proportional to the probabilities, 0 for what must not be drawn."""
        logits = logits / self.options.temperature
        if self.options.top_k:
            logits = logits.masked_fill(logits < self._kth_largest(logits), -torch.inf)
        largest = self._all_reduce(logits.amax(dim=1, keepdim=True), dist.ReduceOp.MAX)
        likelihoods = (logits - largest).exp()
        masses = (likelihoods * _UNIT).long()
        if self.options.top_p < 1.0:
            masses = masses.masked_fill(~self._in_nucleus(likelihoods, masses), 0)
        return masses

    def _kth_largest(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, 1], over all ranks."""
        k = min(self.options.top_k, self.vocab_size)
        own = logits.topk(min(k, logits.shape[1]), dim=1).values
        if self.tp.size > 1:
            own = self._gather(own).movedim(0, 1).flatten(1).topk(k, dim=1).values
        return own[:, -1:]

    def _in_nucleus(self, likelihoods: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
        """bool [B, V']: the fewest likeliest tokens whose mass is `top_p` of the whole, and those like the last.

        The bits of a positive fp32 number are ordered as the number is. So the likelihood at the border is found digit
        by digit, ten bits at a time: the masses of all tokens that share the digits found so far are summed by their
        next one, over all ranks, and the border's is the largest above which, itself included, there is enough.
        """
        keys = likelihoods.view(torch.int32).long()
        border = keys.new_zeros(len(keys), 1)
        above = torch.zeros_like(border)
        wanted: torch.Tensor | None = None
        for shift in range((_DIGITS - 1) * _DIGIT_BITS, -1, -_DIGIT_BITS):
            shares = keys >> (shift + _DIGIT_BITS) == border
            sums = keys.new_zeros(len(keys), 1 << _DIGIT_BITS)
            sums.scatter_add_(1, (keys >> shift) & ((1 << _DIGIT_BITS) - 1), masses * shares)
            # Mass of what has this digit or a larger one; one more place for the digit beyond the last.
            from_digit = self._all_reduce(sums, dist.ReduceOp.SUM).flip(1).cumsum(1).flip(1) + above
            from_digit = torch.cat((from_digit, above), dim=1)
            if wanted is None:
                wanted = (from_digit[:, :1].double() * self.options.top_p).ceil().long()
            digit = (from_digit[:, :-1] >= wanted).sum(1, keepdim=True) - 1
            above = from_digit.gather(1, digit + 1)
            border = (border << _DIGIT_BITS) + digit
        return keys >= border

    def _draw(self, masses: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        ends = masses.cumsum(1)
        own = ends[:, -1]
        before, total = torch.zeros_like(own), own
        if self.tp.size > 1:
            ranks = self._gather(own)
            before, total = ranks[: self.tp.rank].sum(0), ranks.sum(0)
        place = (uniform * total.double()).long().minimum(total - 1) - before
        token = torch.searchsorted(ends, place.unsqueeze(1), right=True).squeeze(1) + self.start
        return self._all_reduce(torch.where((place >= 0) & (place < own), token, 0), dist.ReduceOp.SUM)

    def _all_reduce(self, x: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
        """In place."""
        if self.tp.size > 1:
            dist.all_reduce(x, operation, group=self.tp.group)
        return x

    def _gather(self, x: torch.Tensor) -> torch.Tensor:
        """[...] of every rank -> [ranks, ...]."""
        parts = x.new_empty(self.tp.size, *x.shape)
        dist.all_gather_single(parts.flatten(0, 1), x.contiguous(), group=self.tp.group)
        return parts
