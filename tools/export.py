"""`megaokd export`: write the student or the moved teacher of any checkpoint of a run in Hugging Face's forms.

With the run's own configuration, in any layout, under a launcher or without one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megaokd.cli import run
from megaokd.config_file import load_config
from megaokd.exit_status import ExitStatus
from megaokd.signals import StopRequest
from megaokd.train_command import run_distributed

if TYPE_CHECKING:
    from megaokd.mesh import ParallelMesh


def main(argv: Sequence[str]) -> int:
    """Export; rank 0 says what was written."""
    options = _parser().parse_intermixed_args(argv)
    config = load_config(options.config, options.overrides)
    # After parsing: --help and a mistake in the configuration must not wait for torch.
    from megaokd.export_checkpoint import check_export, export_checkpoint
    from megaokd.models.hub import fetch_models

    check_export(config, options.what, options.output)

    def export(mesh: "ParallelMesh") -> ExitStatus:
        fetched = fetch_models(config)
        text = export_checkpoint(fetched, mesh, which=options.checkpoint, what=options.what, output=options.output)
        if mesh.is_main:
            print(text)
        return ExitStatus.FINISHED

    with StopRequest():  # nobody asks it: half of a folder would be of no use
        return run_distributed(config, export)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megaokd export", description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml", help="of the run, with the overrides that it was started with")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument(
        "--what",
        choices=("student", "adapter", "merged-teacher"),
        default="student",
        help="student or teacher with its modules merged: a model folder; adapter: for peft (default: student)",
    )
    parser.add_argument("--checkpoint", type=_which, default="last", metavar="last|best|STEP", help="default: last")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not hold anything")
    return parser


def _which(text: str) -> str:
    if text not in ("last", "best") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither last, best nor a step")
    return text


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
