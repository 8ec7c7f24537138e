"""megaokd compare: methods x seeds from the same initial student on the same batches, one report.

What is finished is not run again, what was interrupted continues. A cell that fails is told and the others go on; the
exit status is then 1. Everything lies in the recipe's folder.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from megaokd.cli import run
from megaokd.comparison.lock import only_one
from megaokd.comparison.recipe import Recipe, load_recipe

INTERRUPTED = 75


def main(argv: Sequence[str]) -> int:
    """Run what is missing of the grid, then write the report of all of it."""
    parser = argparse.ArgumentParser(
        prog="megaokd compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="docs/compare.md; launch_scripts/recipes has one")
    options = parser.parse_args(argv)
    recipe = load_recipe(options.recipe)
    # After the recipe: its mistakes must not wait for torch. The figures are checked before the first run, not after.
    from megaokd.comparison.figures import check_matplotlib
    from megaokd.comparison.page import write_comparison_report
    from megaokd.comparison.results import collect

    check_matplotlib()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with only_one(Path(recipe.folder)):
            failures = _run_grid(recipe)
            print(write_comparison_report(collect(recipe, failures), recipe))
    finally:
        signal.signal(signal.SIGTERM, before)
    return 1 if failures else 0


def _run_grid(recipe: Recipe) -> dict[str, str]:
    """Cell -> what it failed with."""
    from megaokd.comparison.grid import CellError, cells, check_unchanged, run_cell

    grid = list(cells(recipe))
    for cell in grid:
        check_unchanged(cell)
    missing = [cell for cell in grid if not cell.finished]
    failures: dict[str, str] = {}
    with tqdm(total=len(grid), initial=len(grid) - len(missing), unit="cell", dynamic_ncols=True) as bar:
        for cell in missing:
            bar.set_description(cell.name)
            try:
                run_cell(cell)
            except CellError as error:
                failures[cell.name] = str(error)
                bar.write(f"megaokd: {cell.name} failed, the others go on: {error}", file=sys.stderr)
            bar.update()
        bar.set_description("grid")
    return failures


def _interrupt(number: int, frame: object) -> None:
    """Leave by an exception, which lets the running command save and end first."""
    raise SystemExit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
