"""megaokd preprocess: text or instruction data -> a memory-mapped token dataset."""

import argparse
import sys
from collections.abc import Sequence

from megaokd.cli import run
from megaokd.data.arguments import add_reading_arguments, examples_from_arguments


def main(argv: Sequence[str]) -> int:
    """Tokenize the input and write the dataset folder."""
    parser = argparse.ArgumentParser(prog="megaokd preprocess", description=__doc__)
    add_reading_arguments(parser)
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="folder or Hugging Face name")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--block-length",
        type=int,
        default=512,
        metavar="N",
        help="positions of an example of plain text (default: 512)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a token dataset that is there already")
    arguments = parser.parse_args(argv)
    if arguments.block_length < 1:
        parser.error(f"--block-length must be at least 1, not {arguments.block_length}")

    from megaokd.data.preprocess import preprocess
    from megaokd.data.tokenizer import load_tokenizer

    meta = preprocess(
        examples_from_arguments(arguments),
        load_tokenizer(arguments.tokenizer),
        arguments.output,
        block_length=arguments.block_length,
        overwrite=arguments.overwrite,
        progress=sys.stderr.isatty(),
    )
    print(
        f"wrote {arguments.output}: {meta.num_examples} examples, {meta.num_tokens} tokens, "
        f"{meta.num_loss_tokens} of them predicted, vocabulary {meta.vocab_size}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
