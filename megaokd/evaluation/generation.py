"""Continuations of prompts, shared among the data-parallel ranks."""

from collections.abc import Sequence

from megaokd.evaluation.ranks import Ranks
from megaokd.generation.generate import generate
from megaokd.generation.options import GenerationOptions
from megaokd.models.decoder import Decoder


def continue_prompts(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    ranks: Ranks,
    *,
    eos_id: int,
    batch_size: int = 16,
    streams: Sequence[int] | None = None,
) -> list[list[int]]:
    """Continue each prompt until `eos_id`, part of the result, or `options.max_new_tokens`; on every rank the same.

    In batches of `batch_size`, longest prompts first; the data-parallel ranks take every n-th batch each. Prompt i
    draws stream i, or `streams[i]`, so that what it becomes depends neither on the batches nor on the number of ranks.
    Collectives: those of `generate`, and one gather of all tokens over the data-parallel ranks.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    drawn = range(len(prompts)) if streams is None else streams
    own: dict[int, list[int]] = {}
    for batch in ranks.own(batches):
        chosen, numbers = [prompts[index] for index in batch], [drawn[index] for index in batch]
        rows = generate(model, chosen, options, eos_id=eos_id, streams=numbers)
        own |= dict(zip(batch, rows, strict=True))
    found = {index: row for part in ranks.gather(own) for index, row in part.items()}
    return [found[index] for index in range(len(prompts))]
