"""megaokd preprocess: text or instruction data -> a memory-mapped token dataset."""

import argparse
import sys
from collections.abc import Sequence

from megaokd.cli import run
from megaokd.data.arguments import add_reading_arguments, keys_from_arguments


def main(argv: Sequence[str]) -> int:
    """Tokenize the input and write the dataset folder; after a kill, the same command goes on where it was."""
    parser = argparse.ArgumentParser(prog="megaokd preprocess", description=__doc__)
    add_reading_arguments(parser)
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="Hugging Face folder or name, a tokenizer.json, or a sentencepiece .model",
    )
    parser.add_argument("--eos-token", metavar="TOKEN", help="end of sequence, for a tokenizer file that names none")
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="Jinja template for messages and for prompts with responses, `tokenizer` for the tokenizer's own; without "
        "it, messages use the tokenizer's and prompts with responses none",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--block-length",
        type=int,
        default=512,
        metavar="N",
        help="positions of an example of plain text (default: 512)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what a malformed record does: end the command (default), or be left out and listed in malformed.txt",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a token dataset that is there already")
    arguments = parser.parse_args(argv)
    for name in ("block_length", "workers"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    return _preprocess(arguments)


def _preprocess(arguments: argparse.Namespace) -> int:
    from megaokd.data.preprocess import PreprocessOptions, preprocess
    from megaokd.data.workers import available_cores

    options = PreprocessOptions(
        split=arguments.split,
        keys=keys_from_arguments(arguments),
        eos_token=arguments.eos_token,
        chat_template=arguments.chat_template,
        block_length=arguments.block_length,
        on_error=arguments.on_error,
        workers=arguments.workers or available_cores(),
        overwrite=arguments.overwrite,
        progress=True,
    )
    done = preprocess(arguments.input, arguments.tokenizer, arguments.output, options)
    meta = done.meta
    print(
        f"wrote {arguments.output}: {meta.num_examples} examples, {meta.num_tokens} tokens, "
        f"{meta.num_loss_tokens} of them predicted, vocabulary {meta.vocab_size}"
        + (" (continued from where it was interrupted)" if done.resumed else "")
    )
    if done.num_malformed:
        print(
            f"{done.num_malformed} malformed records were left out; {arguments.output}/malformed.txt lists them",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
