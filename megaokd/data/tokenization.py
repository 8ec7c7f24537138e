"""Records -> token ids: what a worker process does with a chunk."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megaokd.data.chat import TOKENIZERS_OWN, render, set_template
from megaokd.data.chunks import Chunk, MalformedRecordError
from megaokd.data.examples import Conversation, Document, Example, Item, Keys, Kind, to_example
from megaokd.data.order import Ids
from megaokd.data.token_format import token_dtype
from megaokd.data.tokenizer import bos_ids, encode_flat, load_tokenizer, vocabulary_size

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

    An instruction example becomes [bos] + prompt + response + [eos], without [eos] if the response was cut; prompt and
    response are tokenized apart, so the prompt's ids are those of a generation from the prompt alone, and the boundary
    of the loss is exact. A rendered conversation gets neither bos nor eos: its template writes them. A document becomes
    [bos] + text + [eos].
    """

    def __init__(self, options: TokenizerOptions) -> None:
        self.options = options
        self.tokenizer = load_template_tokenizer(options)
        self._dtype = token_dtype(vocabulary_size(self.tokenizer))

    def __call__(self, chunk: Chunk) -> TokenizedChunk:
        """Parse and tokenize; malformed records are left out and listed."""
        texts: list[_Text] = []
        malformed: list[str] = []
        records = 0
        for parsed in chunk.parse():
            records += 1
            try:
                texts.append(self._text(to_example(parsed, self.options.keys, self.options.kind), parsed[0]))
            except MalformedRecordError as error:
                malformed.append(str(error))
        runs = [self._encode(list(run), markup) for markup, run in groupby(texts, key=lambda text: text.markup)]
        runs = runs or [self._encode([], markup=False)]
        tokens, lengths, prompt_lengths = (np.concatenate(parts) for parts in zip(*runs, strict=True))
        kept = lengths > 0  # only a template can render nothing at all
        return TokenizedChunk(tokens, lengths[kept], prompt_lengths[kept], records, malformed)

    def _text(self, item: Item, where: str) -> "_Text":
        if isinstance(item, Document):
            return _Text("", item.text, markup=False)
        if isinstance(item, Example) and self.options.chat_template is not None:
            messages = {"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.response}
            item = Conversation(messages, item.cut)
        if isinstance(item, Conversation):
            if self.tokenizer.chat_template is None:
                set_template(self.tokenizer, TOKENIZERS_OWN)  # says what is missing
            return _Text(*render(self.tokenizer, item, where), markup=True)
        return _Text(item.prompt, item.response, markup=False, cut=item.cut)

    def _encode(self, texts: "list[_Text]", markup: bool) -> tuple[npt.NDArray[Any], Ids, Ids]:
        """(tokens, lengths, prompt lengths) of texts that get begin and end tokens, or of rendered ones that do not."""
        bos, eos = ([], []) if markup else (bos_ids(self.tokenizer), [int(self.tokenizer.eos_token_id)])
        both = [part for text in texts for part in (text.prompt, text.response)]
        ids, counts = encode_flat(self.tokenizer, both, markup=markup)
        prompts, responses = counts[::2], counts[1::2]
        ending = np.array([bool(eos) and not text.cut for text in texts], dtype=np.bool_)
        lengths = len(bos) + prompts + responses + ending
        ends = np.cumsum(lengths)
        tokens = np.empty(int(lengths.sum()), dtype=self._dtype)
        is_text = np.ones(len(tokens), dtype=np.bool_)
        for places, added in ((ends - lengths, bos), ((ends - 1)[ending], eos)):
            if added:
                tokens[places] = added[0]
                is_text[places] = False
        tokens[is_text] = ids
        return tokens, lengths, np.minimum(np.maximum(len(bos) + prompts, 1), lengths)


class _Text(NamedTuple):
    """What the tokenizer gets of an example; a document is all response."""

    prompt: str
    response: str
    markup: bool
    """Rendered by a chat template."""
    cut: bool = False
    """It ends without an end token."""


def load_template_tokenizer(options: TokenizerOptions) -> "PreTrainedTokenizerBase":
    """The tokenizer, with the chat template that the options name."""
    tokenizer = load_tokenizer(options.tokenizer, eos_token=options.eos_token)
    if options.chat_template is not None:
        set_template(tokenizer, options.chat_template)
    return tokenizer
