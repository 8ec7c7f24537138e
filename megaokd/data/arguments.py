"""The command-line options that say which data to read, the same for every tool that reads data."""

import argparse
from collections.abc import Iterator

from megaokd.data.examples import Document, Example, Keys, read_examples


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --input, --split, --prompt-key, --response-key and --text-key."""
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="FILE",
        help="JSONL or Parquet with prompt and response (or text), .txt with documents between blank lines, or a "
        "Hugging Face dataset (name, name:configuration or local folder)",
    )
    parser.add_argument("--split", default="train", help="part of a Hugging Face dataset (default: train)")
    parser.add_argument("--prompt-key", default="prompt", metavar="KEY", help="default: prompt")
    parser.add_argument("--response-key", metavar="KEY", help="default: response, or output")
    parser.add_argument("--text-key", default="text", metavar="KEY", help="default: text")


def examples_from_arguments(arguments: argparse.Namespace) -> Iterator[Example | Document]:
    """The examples that these options ask for; see `read_examples`."""
    keys = Keys(prompt=arguments.prompt_key, response=arguments.response_key, text=arguments.text_key)
    return read_examples(arguments.input, split=arguments.split, keys=keys)
