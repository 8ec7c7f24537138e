"""megaokd report: a run on one page of HTML, figures, warnings and numbers inside, from the log in its folder.

Training writes the same page at every checkpoint and at the end.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megaokd.callbacks.summary import write_summary
from megaokd.cli import run


def main(argv: Sequence[str]) -> int:
    """Write summary.html and say where it is."""
    parser = argparse.ArgumentParser(prog="megaokd report", description=__doc__)
    parser.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="checkpoint.folder of a run, finished or not")
    print(f"summary: {write_summary(parser.parse_args(argv).folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
