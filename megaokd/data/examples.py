"""What a model learns from: an instruction example (prompt, response), or a plain document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megaokd.data.sources import read_records
from megaokd.errors import UserError


@dataclass(frozen=True)
class Example:
    """The model is to answer `prompt` with `response`; only the response is learned."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Document:
    """Plain text: all of it is learned."""

    text: str


@dataclass(frozen=True)
class Keys:
    """The fields of a record that are read."""

    prompt: str = "prompt"
    response: str | None = None
    """Default: `response`, or `output` where there is no `response`."""
    text: str = "text"

    @property
    def responses(self) -> tuple[str, ...]:
        """The names a response may have, the preferred one first."""
        return ("response", "output") if self.response is None else (self.response,)


_DEFAULT_KEYS = Keys()


def read_examples(
    inputs: Sequence[str], *, split: str = "train", keys: Keys = _DEFAULT_KEYS
) -> Iterator[Example | Document]:
    """The examples of all inputs, in order, one at a time; memory does not grow with their number.

    Records with a prompt key are instruction examples, others are documents. All must be of the first one's kind.

    Args:
        inputs: files (.jsonl, .parquet, .txt) or Hugging Face datasets (`name`, `name:configuration`, a local folder).
        split: which part of a Hugging Face dataset.
        keys: the names of the fields.

    Raises:
        UserError: nothing there, an unreadable file, a malformed line, a missing field, a field that is not text.
    """
    kind: type[Example] | type[Document] | None = None
    for source in inputs:
        empty = True
        for where, record in read_records(source, split=split, text_key=keys.text):
            example = _to_example(where, record, keys)
            kind = kind or type(example)
            if type(example) is not kind:
                raise UserError(f"{where}: instruction examples and plain text cannot be mixed in one dataset")
            empty = False
            yield example
        if empty:
            raise UserError(f"{source}: the dataset is empty")


def _to_example(where: str, record: dict[str, Any], keys: Keys) -> Example | Document:
    if keys.prompt in record:
        response_key = next((key for key in keys.responses if key in record), None)
        if response_key is None:
            raise UserError(f"{where}: no {_either(keys.responses)} beside {keys.prompt!r}; {_found(record)}")
        return Example(_text(where, record, keys.prompt), _text(where, record, response_key))
    if keys.text in record:
        return Document(_text(where, record, keys.text))
    raise UserError(
        f"{where}: neither {keys.prompt!r} with {_either(keys.responses)} nor {keys.text!r}; {_found(record)}"
    )


def _text(where: str, record: dict[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise UserError(f"{where}: the value of {key!r} must be text, found {type(value).__name__}")
    return value


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _found(record: dict[str, Any]) -> str:
    return f"found the keys: {', '.join(map(str, record))}" if record else "found no keys at all"
