"""Rows of prompts and responses as one data-parallel rank's part of a global batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from megaokd.data.batch import IGNORE, Batch, BatchShape
from megaokd.data.order import Ids
from megaokd.mesh import Axis


@dataclass(frozen=True)
class Row:
    """A prompt of the data and a response of the student."""

    example: int
    prompt: Ids
    response: list[int]
    """Token ids, the end-of-text token among them where the student has come to an end."""


def batch_of(rows: Sequence[Row], shape: BatchShape, data: Axis, device: torch.device) -> Batch:
    """A batch that carries loss on every token of the responses. One all-gather of 3 numbers over `data`."""
    lengths = [len(row.prompt) + len(row.response) - 1 for row in rows]
    own = torch.tensor([sum(len(row.response) for row in rows), sum(lengths), max(lengths)], device=device)
    ranks = own.new_empty(data.size, 3)
    dist.all_gather_single(ranks.flatten(), own, group=data.group)
    loss_tokens, input_tokens, _ = ranks.sum(0).tolist()
    width = shape.width(int(ranks[:, 2].max()))
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.full((len(rows), width), IGNORE, dtype=np.int64)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids = np.concatenate((row.prompt, np.asarray(row.response, dtype=np.int64)))
        tokens[place, :length] = ids[:-1]
        labels[place, len(row.prompt) - 1 : length] = row.response
    return Batch(
        torch.from_numpy(tokens).view(-1, shape.micro_batch, width),
        torch.from_numpy(labels).view(-1, shape.micro_batch, width),
        loss_tokens,
        input_tokens,
        examples=[np.array([row.example]) for row in rows],
        generated=True,
    )
