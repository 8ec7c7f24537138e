"""megaokd compare: methods x seeds from the same initial student on the same batches, one report.

What is finished is not run again, what was interrupted continues. A cell that fails is told and the others go on; the
exit status is then 1. Everything lies in the recipe's folder.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from megaokd.cli import run
from megaokd.comparison.load import load_recipe
from megaokd.comparison.lock import only_one
from megaokd.comparison.recipe import Recipe
from megaokd.errors import UserError
from megaokd.exit_status import ExitStatus

if TYPE_CHECKING:
    from megaokd.comparison.work import Work


def main(argv: Sequence[str]) -> int:
    """Run what is missing of the grid, then write the report of all of it."""
    parser = argparse.ArgumentParser(
        prog="megaokd compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="docs/compare.md; launch_scripts/recipes has one")
    options = parser.parse_args(argv)
    recipe = load_recipe(options.recipe)
    # After the recipe: its mistakes must not wait for torch. The figures are checked before the first run, not after.
    from megaokd.comparison.page import write_comparison_report
    from megaokd.comparison.results import collect
    from megaokd.evaluation.figures import check_matplotlib

    check_matplotlib()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with only_one(Path(recipe.folder)):
            failures = _run_grid(recipe)
            print(write_comparison_report(collect(recipe, failures), recipe))
    finally:
        signal.signal(signal.SIGTERM, before)
    return ExitStatus.FAILED if failures else ExitStatus.FINISHED


def _run_grid(recipe: Recipe) -> dict[str, str]:
    """Cell or search -> what it failed with."""
    from megaokd.comparison.grid import all_work
    from megaokd.comparison.preflight import check_before_training, check_sources
    from megaokd.comparison.work import CellError

    grid = all_work(recipe)
    check_sources(grid)
    for work in grid:
        if all(source.finished for source in work.sources):
            work.check_unchanged()
    missing = [work for work in grid if not work.finished]
    if missing:
        check_before_training(recipe)
    failures: dict[str, str] = {}
    with tqdm(total=len(grid), initial=len(grid) - len(missing), unit="cell", dynamic_ncols=True) as bar:
        for work in missing:
            try:
                _check_sources(work)
                work.check_unchanged()
                work.run(bar.set_description)
            except (CellError, UserError) as error:
                failures[work.name] = str(error)
                bar.write(f"megaokd: {work.name} failed, the others go on: {error}", file=sys.stderr)
            bar.update()
        bar.set_description("grid")
    return failures


def _check_sources(work: "Work") -> None:
    """Raises UserError where one is missing: it has failed in this call."""
    missing = [source.name for source in work.sources if not source.finished]
    if missing:
        raise UserError(f"it takes something from what has failed: {'; '.join(missing)}")


def _interrupt(number: int, frame: object) -> None:
    """Leave by an exception, which lets the running command save and end first."""
    raise SystemExit(ExitStatus.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
