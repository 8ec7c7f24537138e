"""Continuing prompts: the prompts in one pass, then a token a pass, each row until its own end.

Prompts are padded on the right. A row's tokens then stand in the columns of their positions, whatever the other rows
are; padding lies behind the last token, where no token looks, until the response takes its place.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from megaokd.generation.options import GenerationOptions
from megaokd.generation.selection import Selection
from megaokd.models.architecture import AttentionKind
from megaokd.models.decoder import Decoder
from megaokd.models.key_values import KeyValues
from megaokd.models.positions import Positions, window_mask
from megaokd.models.rotary import RotaryTable
from megaokd.parallel.region import TensorParallel
from megaokd.precision import Precision, autocast

_LOOK_EVERY = 8
"""On a GPU the host asks only after so many tokens whether all rows have ended: each answer costs a wait."""

_NOISE = 0x67656E
"""Sets the random numbers of generation apart from others of the same seed."""


@torch.no_grad()
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    *,
    eos_id: int,
    streams: Sequence[int] | None = None,
    max_length: int | None = None,
    precision: Precision = "fp32",
) -> list[list[int]]:
    """Continue each prompt until `eos_id`, which is part of the result, or `options.max_new_tokens`.

    decoder: a whole model or its share on this tensor-parallel rank, online modules included; not a pipeline stage.
        All ranks of its group call this with the same prompts and get the same tokens.
    prompts: token ids, at least one each.
    streams: which random numbers a row draws; default 0, 1, ... A sampled row is a function of the weights, its prompt,
        the seed and its stream, and of no other row; so rows may be spread over calls and ranks as one likes.
    max_length: most tokens of prompt and response together; default, and never more than, what the model has positions
        for. A row without room has an empty result.

    With LongRoPE the longest row that there may be (prompt and `max_new_tokens`) chooses the factors for all of them.

    Collectives, each token: those of the forward pass (two all-reduces a layer and the embedding's, [B, 1, D] each) and
    those of `Selection`; the prompts cost the former once more. Memory, on each rank: keys and values of all its
    layers, [B, H, T, E] each, with T the tokens of the longest prompt and response.
    """
    room = min(max_length or decoder.arch.max_positions, decoder.arch.max_positions)
    assert all(0 < len(prompt) <= room for prompt in prompts)
    assert decoder.part.first, "generation needs every layer on one rank"
    assert decoder.part.last, "generation needs every layer on one rank"
    if not prompts:
        return []
    device = next(decoder.parameters()).device
    limits = [min(options.max_new_tokens, room - len(prompt)) for prompt in prompts]
    uniform = None if options.greedy else _uniform(options.seed, streams or range(len(prompts)), max(limits))
    with _whole_activations(decoder), autocast(precision, device):
        tokens = _Responses(decoder, prompts, limits, device).fill(options, eos_id, uniform)
    return [_cut(row, limit, eos_id) for row, limit in zip(tokens.tolist(), limits, strict=True)]


class _Responses:
    """The responses of a batch in the making."""

    def __init__(
        self, decoder: Decoder, prompts: Sequence[Sequence[int]], limits: Sequence[int], device: torch.device
    ) -> None:
        self.decoder = decoder
        self.device = device
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.limits = torch.tensor(limits, device=device)
        self.longest = max(limits)
        self.columns = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
        self.passes = _Passes(decoder, self.columns, device)
        padded = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = torch.as_tensor(prompt)
        self.prompts = padded.to(device)

    def fill(self, options: GenerationOptions, eos_id: int, uniform: torch.Tensor | None) -> torch.Tensor:
        """Token ids, int64 [B, longest]; what stands behind a row's end means nothing."""
        embedding, head = self.decoder.embed_tokens, self.decoder.head
        assert embedding is not None
        assert head is not None
        choose = Selection(options, head.tp, head.layout.start, embedding.vocab.size)
        draws = None if uniform is None else uniform.to(self.device).unbind(1)
        found = torch.zeros(len(self.lengths), self.longest, dtype=torch.long, device=self.device)
        ended = self.limits <= 0
        hidden = self.passes.read_prompts(self.prompts)
        last = hidden[torch.arange(len(hidden), device=self.device), self.lengths - 1]
        for number in range(self.longest):
            new = choose(head(last), None if draws is None else draws[number])
            found[:, number] = new
            ended = ended | (new == eos_id) | (self.limits <= number + 1)
            if number + 1 == self.longest or (self._looks(number) and bool(ended.all())):
                break
            # A row that has ended goes on in the columns that it has, unread.
            last = self.passes.read_one(new, (self.lengths + number).clamp(max=self.columns - 1))
        return found

    def _looks(self, number: int) -> bool:
        return self.device.type == "cpu" or number % _LOOK_EVERY == 0


class _Passes:
    """Forward passes through a decoder whose layers keep what they have seen, for rows of at most `columns` tokens."""

    def __init__(self, decoder: Decoder, columns: int, device: torch.device) -> None:
        self.decoder = decoder
        self.columns = torch.arange(columns, device=device)
        self.kinds = [decoder.arch.attention_kind(index) for index in decoder.part.layers]
        self.kept = [KeyValues(columns) for _ in self.kinds]
        self.tables = {kind: kind.rotary.table(columns, device) for kind in set(self.kinds) if kind.rotary is not None}
        self.used = 0
        """Columns that some row may have reached."""

    def read_prompts(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, S] -> hidden states [B, S, D]."""
        self.used = tokens.shape[1]
        places = self.columns[: self.used].expand_as(tokens)
        known = {kind: self._at_the_beginning(kind) for kind in dict.fromkeys(self.kinds)}
        return self._run(tokens, places, known)

    def read_one(self, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """tokens [B], one a row, at `places` [B] -> hidden states [B, D]."""
        self.used = min(self.used + 1, len(self.columns))
        known = {kind: self._at(kind, places) for kind in dict.fromkeys(self.kinds)}
        return self._run(tokens.unsqueeze(1), places.unsqueeze(1), known).squeeze(1)

    def _run(self, tokens: torch.Tensor, places: torch.Tensor, known: dict[AttentionKind, Positions]) -> torch.Tensor:
        layers = [replace(known[kind], kept=kept) for kind, kept in zip(self.kinds, self.kept, strict=True)]
        return self.decoder.run_with(tokens, places, layers)

    def _at_the_beginning(self, kind: AttentionKind) -> Positions:
        table = self.tables.get(kind)
        if table is not None:
            table = RotaryTable(table.cos[: self.used], table.sin[: self.used])
        return Positions(table, window_mask(kind.window, self.used, self.columns.device))

    def _at(self, kind: AttentionKind, places: torch.Tensor) -> Positions:
        columns, at = self.columns[: self.used], places[:, None, None, None]
        mask = columns <= at
        if kind.window is not None:
            mask &= columns > at - kind.window
        table = self.tables.get(kind)
        return Positions(None if table is None else table.at(places.unsqueeze(1)), mask, places=places)


def _uniform(seed: int, streams: Sequence[int], count: int) -> torch.Tensor:
    """fp64 [rows, count] in [0, 1): each row's from a generator of its own."""
    generators = (np.random.default_rng((_NOISE, seed, stream)) for stream in streams)
    return torch.from_numpy(np.stack([generator.random(count) for generator in generators]))


def _cut(row: list[int], limit: int, eos_id: int) -> list[int]:
    """A row up to its end."""
    row = row[:limit]
    return row[: row.index(eos_id) + 1] if eos_id in row else row


@contextmanager
def _whole_activations(decoder: Decoder) -> Iterator[None]:
    """Inside, activations are whole on every tensor-parallel rank: a single token cannot be split.

    Nor are rows: each row group runs the trunk on all of them, so that nothing but the vocabulary's ends communicates
    over the groups.
    """
    embedding, rows = decoder.embed_tokens, decoder.rows
    assert embedding is not None
    modules: list[Any] = list(decoder.modules())  # torch types their attributes as tensors or modules
    changed = [(module, module.tp) for module in modules if isinstance(getattr(module, "tp", None), TensorParallel)]
    for module, tp in changed:
        module.tp = replace(tp, sequence_parallel=False)
    if rows is not None:
        embedding.rows, embedding.tp = None, replace(rows.tensor, sequence_parallel=False)
    try:
        yield
    finally:
        embedding.rows = rows
        for module, tp in changed:
            module.tp = tp
