"""megaokd data: look at a token dataset, or measure how fast one is made."""

import argparse
import sys
from collections.abc import Sequence

from megaokd.cli import run
from megaokd.data.arguments import add_reading_arguments, keys_from_arguments


def main(argv: Sequence[str]) -> int:
    """Dispatch to `inspect` or `benchmark`."""
    parser = argparse.ArgumentParser(prog="megaokd data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="decoded examples with the mask of the loss, and lengths")
    inspect.add_argument(
        "dataset", metavar="DATASET", help="folder of `megaokd preprocess`, or prefix of .bin and .idx"
    )
    inspect.add_argument("--tokenizer", metavar="DIR", help="of a Megatron dataset")
    inspect.add_argument("--examples", type=int, default=3, metavar="N", help="how many are shown (default: 3)")
    inspect.add_argument("--first", type=int, metavar="I", help="show examples from this one on (default: at random)")
    inspect.add_argument("--seed", type=int, default=0, metavar="S", help="of the choice (default: 0)")
    inspect.add_argument("--sequence-length", type=int, default=512, metavar="T", help="data.sequence_length")
    inspect.add_argument("--colour", choices=("auto", "always", "never"), default="auto", help="default: on a terminal")
    inspect.set_defaults(command=_inspect)
    benchmark = commands.add_parser("benchmark", help="`megaokd preprocess` beside the tokenizer library alone")
    add_reading_arguments(benchmark)
    benchmark.add_argument("--tokenizer", required=True, metavar="PATH", help="as in `megaokd preprocess`")
    benchmark.add_argument("--workers", type=int, metavar="N", help="cores that both may use (default: all)")
    benchmark.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    benchmark.set_defaults(command=_benchmark)
    arguments = parser.parse_args(argv)
    for name, least in (
        ("examples", 0),
        ("first", 0),
        ("seed", 0),
        ("sequence_length", 1),
        ("workers", 1),
        ("rounds", 1),
    ):
        value = getattr(arguments, name, None)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    status: int = arguments.command(arguments)
    return status


def _inspect(arguments: argparse.Namespace) -> int:
    import numpy as np

    from megaokd.config import Data
    from megaokd.data.dataset import TokenDataset
    from megaokd.data.inspection import show_example, summary
    from megaokd.data.mixture import open_dataset
    from megaokd.data.tokenizer import load_tokenizer
    from megaokd.errors import UserError

    length = arguments.sequence_length
    data = Data(train=arguments.dataset, tokenizer=arguments.tokenizer, sequence_length=length)
    dataset = open_dataset(arguments.dataset, data)
    if arguments.tokenizer is not None and isinstance(dataset, TokenDataset):
        raise UserError(f"--tokenizer: {arguments.dataset} carries its own tokenizer; leave the option out")
    colour = arguments.colour == "always" or (arguments.colour == "auto" and sys.stdout.isatty())
    if arguments.first is None:
        count = min(arguments.examples, len(dataset))
        shown = sorted(np.random.default_rng(arguments.seed).choice(len(dataset), count, replace=False))
    elif arguments.first >= len(dataset):
        raise UserError(f"--first {arguments.first}: {arguments.dataset} has {len(dataset)} examples, counted from 0")
    else:
        shown = list(range(arguments.first, min(arguments.first + arguments.examples, len(dataset))))
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    for index in shown:
        print(*show_example(dataset, int(index), tokenizer, sequence_length=length, colour=colour), "", sep="\n")
    print(*summary(dataset, sequence_length=length), sep="\n")
    return 0


def _benchmark(arguments: argparse.Namespace) -> int:
    from megaokd.data.speed import measure
    from megaokd.data.workers import available_cores

    workers = arguments.workers or available_cores()
    speed = measure(
        arguments.input,
        arguments.tokenizer,
        workers=workers,
        rounds=arguments.rounds,
        keys=keys_from_arguments(arguments),
        split=arguments.split,
    )
    for name, seconds in (("tokenizer library", speed.library), ("megaokd preprocess", speed.whole)):
        rates = sorted(speed.tokens / each / 1e6 for each in seconds)
        times = ", ".join(f"{each:.2f} s" for each in seconds)
        print(f"{name:<20}{rates[len(rates) // 2]:8.3f} million tokens/s ({times})")
    print(
        f"{speed.tokens} tokens on {workers} cores, {len(speed.whole)} rounds: {speed.ratio:.0%} of the library's speed"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
