"""How fast `megaokd preprocess` is beside the tokenizer library alone, on the same cores in the same run."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megaokd.data.examples import Document, Example, Keys, read_examples
from megaokd.data.preprocess import PreprocessOptions, preprocess
from megaokd.data.tokenizer import load_tokenizer
from megaokd.errors import UserError

_BATCH = 1000  # texts a call, as `datasets.map(batched=True)` does it


@dataclass(frozen=True)
class Speed:
    """Seconds of each round.

    Attributes:
        library: `encode_batch_fast` of the tokenizer library alone, texts in memory, all cores.
        whole: `preprocess`: reading, parsing, tokenizing, writing, fingerprint; with the start of its processes.
        tokens: that the library made of the texts, in one round.
        written: that the dataset holds: with begin and end tokens.
    """

    library: list[float]
    whole: list[float]
    tokens: int
    written: int

    @property
    def ratio(self) -> float:
        """Median of the whole's share of the library's speed, round by round."""
        return statistics.median(a / b for a, b in zip(self.library, self.whole, strict=True))


def measure(inputs: Sequence[str], tokenizer: str, *, workers: int, rounds: int, keys: Keys, split: str) -> Speed:
    """Alternate both on the same texts.

    Raises:
        UserError: conversations, whose templates the library alone does not render; whatever `preprocess` raises.
    """
    texts: list[str] = []
    for item in read_examples(inputs, split=split, keys=keys):
        if isinstance(item, Example):
            texts += (item.prompt, item.response)
        elif isinstance(item, Document):
            texts.append(item.text)
        else:
            raise UserError("the comparison needs prompts with responses or plain text, not messages")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    library, whole, counts = [], [], [0, 0]
    folder = Path(tempfile.mkdtemp(prefix="megaokd-speed-"))
    try:
        for number in range(rounds):
            seconds, counts[0] = _library(tokenizer, texts)
            library.append(seconds)
            started = time.perf_counter()
            options = PreprocessOptions(workers=workers, keys=keys, split=split)
            counts[1] = preprocess(inputs, tokenizer, folder / str(number), options).meta.num_tokens
            whole.append(time.perf_counter() - started)
    finally:
        shutil.rmtree(folder)
    return Speed(library, whole, *counts)


def _library(tokenizer: str, texts: list[str]) -> tuple[float, int]:
    """(seconds, tokens); the tokenizer is loaded anew each time, since it remembers words."""
    backend = load_tokenizer(tokenizer).backend_tokenizer
    started, tokens = time.perf_counter(), 0
    for start in range(0, len(texts), _BATCH):
        encodings = backend.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False)
        tokens += sum(len(encoding.ids) for encoding in encodings)
    return time.perf_counter() - started, tokens
