"""What is continued, and what the continuations are compared with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megaokd.data.examples import check_unicode
from megaokd.data.tokenizer import encode_prompts
from megaokd.errors import UserError
from megaokd.evaluation.examples import Example


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue, their text, and one or more texts that would be right."""

    ids: list[int]
    text: str
    references: tuple[str, ...]


def prompts_of(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompt of every example, with its response as the only reference."""
    return [
        Prompt(
            example.ids[: example.prompt_length],
            text_of(tokenizer, example.ids[: example.prompt_length]),
            (text_of(tokenizer, example.ids[example.prompt_length :]),),
        )
        for example in examples
    ]


def read_prompts(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Prompts from JSONL: `prompt`, and `references` (a list of texts), `response` or `output`.

    Tokenized as `megaokd preprocess` tokenizes the prompt of a training example.

    Raises:
        UserError: no such file, or a line that is not of that form, named by its number.
    """
    texts = prompt_texts(path)
    encoded = encode_prompts(tokenizer, [text for _, text, _ in texts])
    for (number, _, _), ids in zip(texts, encoded, strict=True):
        if not ids:
            raise UserError(f"{path}, line {number}: the prompt has no token, and the tokenizer no begin of sequence")
    return [Prompt(ids, text, references) for ids, (_, text, references) in zip(encoded, texts, strict=True)]


def prompt_texts(path: str | Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """Line, prompt and references of each, as `read_prompts` wants them.

    Raises:
        UserError: no such file, or a line that is not of that form, named by its number.
    """
    records = prompt_records(path)
    if not records:
        raise UserError(f"{path}: no prompt in the whole file")
    return [(number, record["prompt"], _references(f"{path}, line {number}", record)) for number, record in records]


def prompt_records(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, each with a text `prompt`, and the numbers of their lines; empty lines left out.

    Raises:
        UserError: no such file, or a line that is not of that form, named by its number.
    """
    try:
        # Not splitlines(), which knows more ends of a line than JSONL has.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return [(number, _parse(f"{path}, line {number}", line)) for number, line in numbered]


def spread(source: object, prompts: Sequence[Prompt], count: int, room: int, max_new_tokens: int) -> list[Prompt]:
    """At most `count` of those of `source` with at most `room` ids, spread evenly.

    Raises:
        UserError: none is that short.
    """
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= room]
    if not fitting:
        raise UserError(
            f"{source}: no prompt leaves room for {max_new_tokens} new tokens in {room + max_new_tokens} positions; "
            "lower --max-new-tokens"
        )
    count = min(count, len(fitting))
    return [fitting[index * len(fitting) // count] for index in range(count)]


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Without special tokens and surrounding space."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _parse(where: str, line: str) -> dict[str, Any]:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # an integer of 5000 digits is the former
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(f"{where}: an object with the text 'prompt' is expected")
    check_unicode(f"{where}: 'prompt'", record["prompt"])
    return record


def _references(where: str, record: dict[str, Any]) -> tuple[str, ...]:
    references = record.get("references", [record.get("response", record.get("output"))])
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        raise UserError(f"{where}: 'references' (a list of texts), 'response' or 'output' is expected")
    return tuple(references)
