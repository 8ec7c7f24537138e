"""megaokd tokenizer: train a sentencepiece tokenizer on the training data."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from megaokd.cli import run
from megaokd.data.arguments import add_reading_arguments, examples_from_arguments
from megaokd.data.examples import Conversation, Document
from megaokd.errors import UserError
from megaokd.files import check_output_folder


def main(argv: Sequence[str]) -> int:
    """Train on every prompt, response, message and text of the input, and write the folder."""
    parser = argparse.ArgumentParser(prog="megaokd tokenizer", description=__doc__)
    add_reading_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="tokens, special ones included")
    parser.add_argument("--overwrite", action="store_true", help="write over a tokenizer that is there already")
    arguments = parser.parse_args(argv)
    output = Path(arguments.output)
    check_output_folder(output)
    if output.exists() and any(output.iterdir()) and not arguments.overwrite:
        raise UserError(f"{output}: not empty; give another --output, or --overwrite to write over a former tokenizer")

    from megaokd.data.tokenizer_training import train_tokenizer

    train_tokenizer(_texts(arguments), arguments.output, vocab_size=arguments.vocab_size)
    print(f"wrote a tokenizer of {arguments.vocab_size} tokens to {arguments.output}")
    return 0


def _texts(arguments: argparse.Namespace) -> Iterator[str]:
    for example in examples_from_arguments(arguments):
        if isinstance(example, Document):
            yield example.text
        elif isinstance(example, Conversation):
            yield from (message["content"] for message in example.messages)
        else:
            yield example.prompt
            yield example.response


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
