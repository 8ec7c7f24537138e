"""What a model learns from: an answer to a prompt, the last answer of a conversation, or a plain document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megaokd.data.chunks import MalformedRecordError, Parsed, Position
from megaokd.data.sources import read_chunks
from megaokd.errors import UserError

Kind = Literal["instruction", "text"]
FINISH_REASON, CUT = "finish_reason", "length"
"""The field that says why a response ends (as in OpenAI's API), and its value for one that ran into a limit."""


@dataclass(frozen=True)
class Example:
    """The model is to answer `prompt` with `response`; only the response is learned."""

    prompt: str
    response: str
    cut: bool = False
    """The response was cut before its end: it is learned, and not that it ends there."""


@dataclass(frozen=True)
class Conversation:
    """Messages in the form of chat templates; only the last one, the assistant's, is learned."""

    messages: tuple[dict[str, str], ...]
    cut: bool = False
    """As in `Example`."""


@dataclass(frozen=True)
class Document:
    """Plain text: all of it is learned."""

    text: str


Item = Example | Conversation | Document


@dataclass(frozen=True)
class Keys:
    """The fields of a record that are read."""

    prompt: str = "prompt"
    response: str | None = None
    """Default: `response`, or `output` where there is no `response`."""
    text: str = "text"
    messages: str = "messages"

    @property
    def responses(self) -> tuple[str, ...]:
        """The names a response may have, the preferred one first."""
        return ("response", "output") if self.response is None else (self.response,)

    def columns(self, present: Sequence[str]) -> list[str]:
        """Those of a table's columns that are read; all where they make no example, for the error to name."""
        answered = any(name in present for name in self.responses)
        if self.messages in present or (answered if self.prompt in present else self.text in present):
            fields = (self.prompt, *self.responses, self.text, self.messages, FINISH_REASON)
            return [name for name in present if name in fields]
        return list(present)


_DEFAULT_KEYS = Keys()


def kind_of(item: Item) -> Kind:
    """The kind of dataset that an item belongs to."""
    return "text" if isinstance(item, Document) else "instruction"


def read_examples(inputs: Sequence[str], *, split: str = "train", keys: Keys = _DEFAULT_KEYS) -> Iterator[Item]:
    """The examples of all inputs, in order, one at a time; memory does not grow with their number.

    All must be of the first one's kind, instructions (a prompt or messages) or plain text.

    Args:
        inputs: files (.jsonl, .parquet, .txt) or Hugging Face datasets (`name`, `name:configuration`, a local folder).
        split: which part of a Hugging Face dataset.
        keys: the names of the fields.

    Raises:
        UserError: nothing there, an unreadable file, a malformed line, a missing field, a field that is not text.
    """
    kind: Kind | None = None
    for source in inputs:
        empty = True
        for chunk in read_chunks(source, Position(), split=split, columns=keys.columns, text_key=keys.text):
            for parsed in chunk.parse():
                item = to_example(parsed, keys, kind)
                kind = kind_of(item)
                empty = False
                yield item
        if empty:
            raise UserError(f"{source}: the dataset is empty")


def first_kind(inputs: Sequence[str], *, split: str, keys: Keys, skip_malformed: bool) -> Kind:
    """The kind of the first example; reads no further.

    Raises:
        UserError: as `read_examples`; with `skip_malformed`, no input holds an example.
    """
    for source in inputs:
        for chunk in read_chunks(source, Position(), split=split, columns=keys.columns, text_key=keys.text):
            for parsed in chunk.parse():
                try:
                    return kind_of(to_example(parsed, keys, None))
                except MalformedRecordError:
                    if not skip_malformed:
                        raise
    raise UserError(f"{', '.join(inputs)}: no usable example in the whole input; the dataset is empty")


def to_example(parsed: Parsed, keys: Keys, kind: Kind | None) -> Item:
    """The example in a record.

    Raises:
        MalformedRecordError: the record could not be parsed, lacks a field, or is not of `kind` where one is asked for.
    """
    where, record = parsed
    if isinstance(record, MalformedRecordError):
        raise MalformedRecordError(f"{where}: {record}")
    item = _to_item(where, record, keys)
    if kind is not None and kind_of(item) != kind:
        first = "plain text" if kind == "text" else "an instruction example"
        raise MalformedRecordError(
            f"{where}: instruction examples and plain text cannot be mixed in one dataset, "
            f"and its first record is {first}"
        )
    return item


def _to_item(where: str, record: dict[str, Any], keys: Keys) -> Item:
    cut = record.get(FINISH_REASON) == CUT
    if keys.messages in record:
        return Conversation(_messages(where, record[keys.messages], keys.messages), cut)
    if keys.prompt in record:
        response_key = next((key for key in keys.responses if key in record), None)
        if response_key is None:
            raise MalformedRecordError(
                f"{where}: no {_either(keys.responses)} beside {keys.prompt!r}; {_found(record)}"
            )
        return Example(_text(where, record, keys.prompt), _text(where, record, response_key), cut)
    if keys.text in record:
        return Document(_text(where, record, keys.text))
    raise MalformedRecordError(
        f"{where}: neither {keys.prompt!r} with {_either(keys.responses)} nor {keys.messages!r} nor {keys.text!r}; "
        f"{_found(record)}"
    )


def _messages(where: str, value: Any, key: str) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise MalformedRecordError(f"{where}: {key!r} must be a list of messages, found {type(value).__name__}")
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
            raise MalformedRecordError(
                f"{where}: message {number} of {key!r} must have 'role' and 'content', both text"
            )
        for name in ("role", "content"):
            check_unicode(f"{where}: {name!r} of message {number} of {key!r}", message[name])
    if value[-1]["role"] != "assistant":
        raise MalformedRecordError(f"{where}: the last message must be the assistant's, found {value[-1]['role']!r}")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _text(where: str, record: dict[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise MalformedRecordError(f"{where}: the value of {key!r} must be text, found {type(value).__name__}")
    check_unicode(f"{where}: the value of {key!r}", value)
    return value


def check_unicode(what: str, text: str) -> None:
    """JSON's escapes can spell half of a pair of surrogates, which no tokenizer takes.

    Raises:
        MalformedRecordError: `text` holds one; the sentence begins with `what`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedRecordError(
            f"{what} holds half a character (the surrogate {text[error.start]!a} without its other half)"
        ) from None


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _found(record: dict[str, Any]) -> str:
    return f"found the keys: {', '.join(map(str, record))}" if record else "found no keys at all"
