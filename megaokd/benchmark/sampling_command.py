"""`megaokd benchmark sampling`: an update on the student's own text over an update of OKD.

One pair of models a call; the page and its plot show the newest call of each pair. One thread on a CPU. With --clock
cpu seconds are those in which the process was running: what else the machine does meanwhile is not counted, though it
shares memory and caches.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaokd.option_types import positive


def main(argv: Sequence[str]) -> int:
    """Measure, write page and plot, print the page."""
    options = _parser().parse_args(argv)
    from megaokd.evaluation.figures import check_matplotlib

    check_matplotlib()
    import torch

    from megaokd.benchmark.sampling.grid import measure_pair
    from megaokd.benchmark.sampling.report import write_report
    from megaokd.benchmark.sampling.updates import Cell
    from megaokd.benchmark.step.world import ModelSize, Pair, build_world
    from megaokd.evaluation.environment import describe_environment

    torch.set_num_threads(1)
    most = max(options.batches)
    pair = Pair(
        teacher=ModelSize(*options.teacher),
        student=ModelSize(*options.student),
        vocab=options.vocab,
        sequence=options.prompt + max(options.lengths) - 1,
        global_batch=most,
        micro_batch=most,
        prompt_tokens=options.prompt,
    )
    cells = [Cell(rows, response) for rows in options.batches for response in options.lengths]
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(pair, Path(folder), 1)
        measured = measure_pair(world, cells, options.repetitions, options.clock, _say)
    about = {"threads": "1", "clock": "seconds of the process" if options.clock == "cpu" else "wall"}
    comparison = {
        "command": f"megaokd benchmark sampling {shlex.join(argv)}",
        "environment": describe_environment() | about,
        **measured,
    }
    print(write_report(Path(options.output), comparison))
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    size: dict[str, Any] = {"type": positive, "nargs": 2, "metavar": ("LAYERS", "WIDTH")}
    several: dict[str, Any] = {"type": positive, "nargs": "+", "metavar": "N"}
    parser = argparse.ArgumentParser(prog="megaokd benchmark sampling", description=__doc__)
    parser.add_argument("--teacher", default=(8, 320), **size, help="width: a multiple of 64 (default: 8 320)")
    parser.add_argument("--student", default=(4, 128), **size, help="default: 4 128")
    parser.add_argument("--vocab", type=positive, default=2048, help="default: 2048")
    parser.add_argument("--prompt", type=positive, default=64, help="tokens of each prompt (default: 64)")
    parser.add_argument("--lengths", default=(64, 128, 256, 512), **several, help="of responses (default: 64 to 512)")
    parser.add_argument("--batches", default=(1, 4, 16), **several, help="rows of an update (default: 1 4 16)")
    parser.add_argument("--repetitions", type=positive, default=3, help="default: 3")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="default: wall")
    parser.add_argument("--output", required=True, help="folder for sampling.md, sampling.json and sampling.png")
    return parser
