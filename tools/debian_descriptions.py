"""megaokd debian-descriptions: a real data set that every Debian system can make, {prompt, output} as JSON lines.

The long description of a package is the prompt, its one-line synopsis the output. Read from the lists that apt keeps;
`apt-get update -o Acquire::Languages=en` brings those with the descriptions. Packages of the same source are in the
same of the three files, and the same lists give the same files.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megaokd.cli import run
from megaokd.data.debian import read_descriptions, split, write_parts
from megaokd.files import check_output_folder
from megaokd.option_types import positive


def main(argv: Sequence[str]) -> int:
    """Read the lists and write train.jsonl, dev.jsonl and test.jsonl."""
    parser = argparse.ArgumentParser(
        prog="megaokd debian-descriptions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for train, dev and test .jsonl")
    parser.add_argument(
        "--lists", default="/var/lib/apt/lists", metavar="DIR", help="apt's lists (default: /var/lib/apt/lists)"
    )
    parser.add_argument(
        "--max-characters", type=positive, default=500, metavar="N", help="of a long description (default: 500)"
    )
    options = parser.parse_args(argv)
    check_output_folder(Path(options.output))
    parts = split(read_descriptions(Path(options.lists)), options.max_characters)
    write_parts(parts, Path(options.output))
    print(f"wrote {options.output}: {', '.join(f'{len(records)} {part}' for part, records in parts.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
