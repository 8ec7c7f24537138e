"""`megaokd benchmark growth`: how time and memory of a step of OKD grow, and what saves some of them.

Over sequence length, vocabulary, layers, micro-batches, tensor- and pipeline-parallel ranks; the idle share of a
pipeline's ranks; recomputation and sequence parallelism. Each axis stands beside what is predicted of it: FLOPs, the
memory of `megaokd plan`, (P - 1) / (M + P - 1). One thread a process on a CPU; a point with more processes than cores
has memory only. The page keeps the newest measurement of each axis, so several calls make one page.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaokd.benchmark.allocator import allocator_setting, measuring_command
from megaokd.option_types import positive

AXES_BY_NAME = ("sequence", "vocabulary", "layers", "micro-batches", "tensor", "pipeline", "bubble", "savings")


def main(argv: Sequence[str]) -> int:
    """Measure, write the report, print it."""
    options = _parser().parse_args(argv)
    import torch

    from megaokd.benchmark.growth.axes import AXES
    from megaokd.benchmark.growth.measure import measure_axis
    from megaokd.benchmark.growth.report import write_report
    from megaokd.benchmark.step.worker import check_system
    from megaokd.benchmark.step.world import ModelSize, Pair
    from megaokd.evaluation.environment import describe_environment
    from megaokd.evaluation.figures import check_matplotlib

    check_system()
    check_matplotlib()
    torch.set_num_threads(1)
    base = Pair(
        teacher=ModelSize(*options.teacher),
        student=ModelSize(*options.student),
        vocab=options.vocab,
        sequence=options.sequence,
        global_batch=options.batch,
        micro_batch=1,
    )
    page = ""
    for name in options.axes:
        axis = AXES[name]
        points = measure_axis(axis, base, options.repetitions)
        entry = {
            "axis": name,
            "title": axis.title,
            "about": f"Beside what is varied: {base.title}; {axis.note}",
            "command": measuring_command("growth", argv),
            "environment": describe_environment() | {"allocator": allocator_setting()},
            "points": points,
        }
        page = write_report(Path(options.output), entry)
    print(page)
    return 0


def _parser() -> argparse.ArgumentParser:
    size: dict[str, Any] = {"type": positive, "nargs": 2, "metavar": ("LAYERS", "WIDTH")}
    parser = argparse.ArgumentParser(prog="megaokd benchmark growth", description=__doc__)
    parser.add_argument(
        "--axes", nargs="+", choices=AXES_BY_NAME, default=AXES_BY_NAME, metavar="AXIS", help=", ".join(AXES_BY_NAME)
    )
    parser.add_argument("--teacher", default=(8, 512), **size, help="width: a multiple of 256 (default: 8 512)")
    parser.add_argument("--student", default=(4, 256), **size, help="default: 4 256")
    parser.add_argument("--vocab", type=positive, default=4096, help="default: 4096")
    parser.add_argument("--sequence", type=positive, default=256, help="positions, half of them prompt (default: 256)")
    parser.add_argument("--batch", type=positive, default=4, help="sequences of a step, one a micro-batch (default: 4)")
    parser.add_argument("--repetitions", type=positive, default=5, help="default: 5")
    parser.add_argument("--output", required=True, help="folder for growth.md, growth.json and growth.png")
    return parser
