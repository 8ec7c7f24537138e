"""Records -> token ids: what a worker process does with a chunk."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megaokd.data.chat import render, set_template
from megaokd.data.examples import Conversation, Document, Example, Keys, Kind, to_example
from megaokd.data.sources import Chunk, MalformedRecordError
from megaokd.data.token_format import token_dtype
from megaokd.data.tokenizer import bos_ids, encode_texts, load_tokenizer, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """Which tokenizer, and what of a record it gets. Two runs with equal options give equal tokens."""

    tokenizer: str
    eos_token: str | None = None
    chat_template: str | None = None
    """A Jinja file or `tokenizer`: prompts and responses become conversations. None: only messages do."""
    keys: Keys = field(default_factory=Keys)
    kind: Kind = "instruction"


@dataclass(frozen=True)
class TokenizedChunk:
    """The examples of a chunk, one after another.

    Attributes:
        tokens: uint16 or uint32 [tokens].
        lengths: int64 [examples]; their sum is the number of tokens.
        prompt_lengths: int64 [examples], >= 1.
        records: records of the chunk, malformed ones included.
        malformed: one sentence for each, in order.
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int64]
    records: int
    malformed: list[str]


class ChunkTokenizer:
    """Tokenizes chunks; each worker process builds its own from the options.

    An instruction example becomes [bos] + prompt + response + [eos]; prompt and response are tokenized apart, so the
    prompt's ids are those of a generation from the prompt alone, and the boundary of the loss is exact. A rendered
    conversation gets neither bos nor eos: its template writes them. A document becomes [bos] + text + [eos].
    """

    def __init__(self, options: TokenizerOptions) -> None:
        self.options = options
        self.tokenizer = load_template_tokenizer(options)
        self._dtype = token_dtype(vocabulary_size(self.tokenizer))

    def __call__(self, chunk: Chunk) -> TokenizedChunk:
        """Parse and tokenize; malformed records are left out and listed."""
        pairs: list[tuple[str, str]] = []
        markup: bool | None = None
        rendered: list[bool] = []
        malformed: list[str] = []
        records = 0
        for parsed in chunk.parse():
            records += 1
            try:
                item = to_example(parsed, self.options.keys, self.options.kind)
                pair, markup = self._text(item, parsed[0])
            except MalformedRecordError as error:
                malformed.append(str(error))
                continue
            pairs.append(pair)
            rendered.append(markup)
        examples, prompt_lengths = self._encode(pairs, rendered)
        return TokenizedChunk(
            np.fromiter(chain.from_iterable(examples), dtype=self._dtype, count=sum(map(len, examples))),
            np.fromiter(map(len, examples), dtype=np.int64, count=len(examples)),
            np.asarray(prompt_lengths, dtype=np.int64),
            records,
            malformed,
        )

    def _text(self, item: Example | Conversation | Document, where: str) -> tuple[tuple[str, str], bool]:
        """(prompt, response) of an item, a document being all response, and whether a template wrote them."""
        if isinstance(item, Document):
            return ("", item.text), False
        if isinstance(item, Example) and self.options.chat_template is not None:
            messages = {"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.response}
            item = Conversation(messages)
        if isinstance(item, Conversation):
            if self.tokenizer.chat_template is None:
                set_template(self.tokenizer, "tokenizer")  # says what is missing
            return render(self.tokenizer, item, where), True
        return (item.prompt, item.response), False

    def _encode(self, pairs: list[tuple[str, str]], rendered: list[bool]) -> tuple[list[list[int]], list[int]]:
        eos = [int(self.tokenizer.eos_token_id)]
        bos = bos_ids(self.tokenizer)
        examples: list[list[int]] = [[]] * len(pairs)
        prompt_lengths = [0] * len(pairs)
        for markup in (False, True):
            chosen = [index for index, is_rendered in enumerate(rendered) if is_rendered == markup]
            texts = chain.from_iterable(pairs[index] for index in chosen)
            ids = iter(encode_texts(self.tokenizer, list(texts), markup=markup))
            start, end = ([], []) if markup else (bos, eos)
            for index, prompt, response in zip(chosen, ids, ids, strict=True):
                examples[index] = [*start, *prompt, *response, *end]
                prompt_lengths[index] = max(len(start) + len(prompt), 1)
        return _drop_empty(examples, prompt_lengths)


def load_template_tokenizer(options: TokenizerOptions) -> "PreTrainedTokenizerBase":
    """The tokenizer, with the chat template that the options name."""
    tokenizer = load_tokenizer(options.tokenizer, eos_token=options.eos_token)
    if options.chat_template is not None:
        set_template(tokenizer, options.chat_template)
    return tokenizer


def _drop_empty(examples: list[list[int]], prompt_lengths: Iterable[int]) -> tuple[list[list[int]], list[int]]:
    """Only a template can render nothing at all."""
    kept = [(ids, length) for ids, length in zip(examples, prompt_lengths, strict=True) if ids]
    return [ids for ids, _ in kept], [min(length, len(ids)) for ids, length in kept]
