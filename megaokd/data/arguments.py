"""The command-line options that say which data to read, the same for every tool that reads data."""

import argparse
from collections.abc import Iterator

from megaokd.data.examples import Item, Keys, read_examples


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --input, --split, and a key for each field of a record."""
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="FILE",
        help="JSONL or Parquet with prompt and response (or messages, or text), .txt with documents between blank "
        "lines, or a Hugging Face dataset (name, name:configuration or local folder)",
    )
    parser.add_argument("--split", default="train", help="part of a Hugging Face dataset (default: train)")
    parser.add_argument("--prompt-key", default="prompt", metavar="KEY", help="default: prompt")
    parser.add_argument("--response-key", metavar="KEY", help="default: response, or output")
    parser.add_argument("--messages-key", default="messages", metavar="KEY", help="default: messages")
    parser.add_argument("--text-key", default="text", metavar="KEY", help="default: text")


def keys_from_arguments(arguments: argparse.Namespace) -> Keys:
    """The names of the fields that these options give."""
    return Keys(
        prompt=arguments.prompt_key,
        response=arguments.response_key,
        text=arguments.text_key,
        messages=arguments.messages_key,
    )


def examples_from_arguments(arguments: argparse.Namespace) -> Iterator[Item]:
    """The examples that these options ask for; see `read_examples`."""
    return read_examples(arguments.input, split=arguments.split, keys=keys_from_arguments(arguments))
