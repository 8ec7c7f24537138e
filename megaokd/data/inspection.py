"""What is in a dataset, for a person: decoded examples with the mask of the loss, lengths, padding."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from megaokd.data.mixture import ExampleSet
from megaokd.data.order import Ids
from megaokd.data.packing import padding_share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEARNED, GIVEN, CUT, PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[31m", "\x1b[0m"
_MARKS = {LEARNED: ("[[", "]]"), GIVEN: ("", ""), CUT: ("{{", "}}")}  # where there is no colour
_SAMPLE = 1 << 16  # examples whose padding is computed


def show_example(
    dataset: ExampleSet, index: int, tokenizer: "PreTrainedTokenizerBase", *, sequence_length: int, colour: bool
) -> Iterator[str]:
    """Lines: what is given dim, what is learned green, what `sequence_length` cuts off red; else in brackets."""
    ids = dataset[index]
    prompt = int(dataset.prompt_lengths[index])
    learned = max(min(len(ids), sequence_length + 1) - prompt, 0)
    yield f"example {index}: {len(ids)} tokens, {learned} of them learned"
    ends = [min(prompt, sequence_length + 1), sequence_length + 1, len(ids)]
    start, parts = 0, []
    for style, end in zip((GIVEN, LEARNED, CUT), ends, strict=True):
        text = tokenizer.decode(ids[start : max(end, start)], skip_special_tokens=False)
        assert isinstance(text, str)
        if text:
            parts.append(_paint(text, style) if colour else text.join(_MARKS[style]))
        start = max(end, start)
    yield from "".join(parts).split("\n")


def summary(dataset: ExampleSet, *, sequence_length: int) -> Iterator[str]:
    """Lines: counts, a histogram of lengths, and how much would be padding at this sequence length."""
    lengths, prompts = dataset.lengths, dataset.prompt_lengths
    learned = int((lengths - prompts).sum())
    yield f"{dataset.folder}: {len(dataset)} examples, {int(lengths.sum())} tokens, {learned} learned"
    quantiles = np.quantile(lengths, (0.0, 0.5, 0.9, 0.99, 1.0), method="lower").astype(int)
    yield "tokens an example: " + ", ".join(
        f"{name} {value}" for name, value in zip(("least", "median", "90%", "99%", "most"), quantiles, strict=True)
    )
    yield from histogram(lengths)
    too_long, all_prompt = int((lengths - 1 > sequence_length).sum()), int((prompts > sequence_length).sum())
    yield (
        f"data.sequence_length={sequence_length}: {too_long} examples are cut, "
        f"{all_prompt} are left out because their prompt fills it"
    )
    yield from _padding(dataset, sequence_length)


def histogram(lengths: Ids, *, bars: int = 12, width: int = 50) -> Iterator[str]:
    """One line for each range of lengths."""
    counts, edges = np.histogram(lengths, bins=min(bars, int(lengths.max() - lengths.min()) + 1))
    starts = np.ceil(edges[:-1]).astype(int)
    ends = np.maximum(np.ceil(edges[1:]).astype(int) - 1, starts)
    ends[-1] = lengths.max()
    for start, end, count in zip(starts, ends, counts, strict=True):
        yield f"  {f'{start}-{end}':>15}  {count:>9}  {'#' * int(np.ceil(width * count / counts.max()))}".rstrip()


def _padding(dataset: ExampleSet, sequence_length: int, global_batch: int = 32) -> Iterator[str]:
    """Of the three ways to make batches, on examples drawn evenly over the dataset."""
    kept = np.flatnonzero(dataset.prompt_lengths <= sequence_length)
    if not len(kept):
        return
    rng = np.random.default_rng(0)
    chosen = rng.permutation(rng.choice(kept, min(len(kept), _SAMPLE), replace=False))
    lengths = np.minimum(dataset.lengths[chosen] - 1, sequence_length)
    yield (
        f"padding, on {len(lengths)} examples with global batches of {global_batch}: "
        f"{_batch_padding(lengths, global_batch):.1%} as they come, "
        f"{_batch_padding(np.sort(lengths), global_batch):.1%} by length (data.length_window), "
        f"{padding_share(lengths, sequence_length):.1%} packed (data.packing)"
    )


def _batch_padding(lengths: Ids, size: int) -> float:
    starts = np.arange(0, len(lengths), size)
    widths = np.maximum.reduceat(lengths, starts)
    return 1.0 - float(lengths.sum()) / float((widths * np.diff([*starts, len(lengths)])).sum())


def _paint(text: str, style: str) -> str:
    """Every line by itself, as pagers want it."""
    return "\n".join(f"{style}{line}{PLAIN}" if line else line for line in text.split("\n"))
