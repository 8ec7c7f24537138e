"""megaokd corpus: a real instruction corpus that every Python installation carries.

Pairs of a function's signature and the first paragraph of its docstring, read from the standard library and from
installed packages. The source is parsed, never imported.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megaokd.cli import run
from megaokd.data.docstrings import corpus_from_packages, write_corpus
from megaokd.files import check_output_folder


def main(argv: Sequence[str]) -> int:
    """Read the packages and write train.jsonl, validation.jsonl and test.jsonl."""
    parser = argparse.ArgumentParser(
        prog="megaokd corpus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for train, validation and test .jsonl")
    parser.add_argument(
        "--packages",
        default="stdlib",
        metavar="A,B,...",
        help="stdlib and names of installed packages, separated by commas (default: stdlib)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="keep N pairs, drawn by the seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the split, the order and the limit")
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit must be at least 1, not {arguments.limit}")

    check_output_folder(Path(arguments.output))
    packages = [name.strip() for name in arguments.packages.split(",") if name.strip()]
    corpus = corpus_from_packages(packages, seed=arguments.seed, limit=arguments.limit)
    write_corpus(corpus, Path(arguments.output))
    print(f"wrote {arguments.output}: {', '.join(f'{len(pairs)} {part}' for part, pairs in corpus.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
