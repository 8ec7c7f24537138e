"""`megaokd benchmark step`: a training step, its parts and its memory, beside the same step by other means.

One thread a process on a CPU, where large allocations cost a tenth of a step and more unless THP_MEM_ALLOC_ENABLE=1 is
in the environment; the report states it, and it holds for all rows. A page keeps the newest comparison of each pair of
models; each vocabulary but the default has a page of its own.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaokd.benchmark.allocator import allocator_setting, measuring_command
from megaokd.option_types import positive

if TYPE_CHECKING:
    from megaokd.benchmark.measure import Clock
    from megaokd.benchmark.step.worker import Contender

NUM_BATCHES = 4
SMALLEST_VOCAB = 16
HEAD_CHANNELS = 64


def main(argv: Sequence[str]) -> int:
    """Measure, write the report, print it."""
    options = _parse(argv)
    import torch

    from megaokd.benchmark.step.contenders import compare_values, contenders, our_variants
    from megaokd.benchmark.step.report import write_report
    from megaokd.benchmark.step.results import summarize
    from megaokd.benchmark.step.worker import check_system
    from megaokd.benchmark.step.world import ModelSize, Pair, build_world
    from megaokd.evaluation.environment import describe_environment

    check_system()
    allocator = f"{allocator_setting()}, the same for all rows"
    about = {"peers": _versions(), "threads": "1", "allocator": allocator}
    about["clock"] = "seconds of the process" if options.clock == "cpu" else "wall"
    torch.set_num_threads(1)
    pair = Pair(
        teacher=ModelSize(*options.teacher),
        student=ModelSize(*options.student),
        vocab=options.vocab,
        sequence=options.sequence,
        global_batch=options.batch,
        micro_batch=options.micro_batch or options.batch,
    )
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(pair, Path(folder), NUM_BATCHES)
        variants = our_variants(pair.teacher.num_layers)
        chosen = contenders(world, variants, peers=not options.no_peers, clock=options.clock, rows=options.rows or ())
        found = {one.name: one for one in chosen}
        peaks = _measure(chosen, options.repetitions, options.clock)
        compare_values(found)
        comparison = {
            "vocab": pair.vocab,
            "command": measuring_command("step", argv),
            "environment": describe_environment() | about,
            **summarize(world, variants, found, peaks),
        }
    print(write_report(Path(options.output), comparison))
    return 0


def _measure(found: "list[Contender]", repetitions: int, clock: "Clock") -> list[float]:
    """Steps of all contenders in turn; FLOP/s of a matrix product, once in each turn."""
    from megaokd.benchmark.step.results import matmul_flops
    from megaokd.benchmark.step.worker import Worker

    peaks = []
    with ExitStack() as processes:
        workers = [processes.enter_context(Worker(contender)) for contender in found]
        for worker in workers:
            worker.contender.refused = worker.ready()
        workers = [worker for worker in workers if not worker.contender.refused]
        for worker in workers:  # compiles what it compiles; all at once, as it is not timed
            worker.begin(0)
        for worker in workers:
            worker.finish()
        for step in range(1, repetitions + 1):
            peaks.append(matmul_flops(clock))
            for worker in workers:
                worker.begin(step)
                worker.finish()
            print(f"measured: repetition {step} of {repetitions}", file=sys.stderr, flush=True)
        for worker in workers:
            worker.measure_memory(repetitions + 1)
            worker.measure_operators(repetitions + 2)
    return peaks


def _versions() -> str:
    import importlib.metadata

    found = []
    for package in ("peft", "trl"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; what cannot be measured ends the command with a sentence."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.vocab < SMALLEST_VOCAB:
        parser.error(
            f"--vocab {options.vocab}: heads of fewer than {SMALLEST_VOCAB} tokens cost nothing but calls; give more, "
            "such as 4096 or 32000"
        )
    for name in ("teacher", "student"):
        width = getattr(options, name)[1]
        if width % HEAD_CHANNELS:
            parser.error(f"--{name}: a width of {width} is not a multiple of {HEAD_CHANNELS}, the channels of a head")
    if options.batch % (options.micro_batch or options.batch):
        parser.error(f"--batch {options.batch} is not a multiple of --micro-batch {options.micro_batch}")
    return options


def _parser() -> argparse.ArgumentParser:
    size: dict[str, Any] = {"type": positive, "nargs": 2, "metavar": ("LAYERS", "WIDTH")}
    parser = argparse.ArgumentParser(prog="megaokd benchmark step", description=__doc__)
    parser.add_argument("--teacher", default=(16, 512), **size, help="width: a multiple of 64 (default: 16 512)")
    parser.add_argument("--student", default=(4, 192), **size, help="default: 4 192")
    parser.add_argument("--vocab", type=positive, default=4096, help="default: 4096")
    parser.add_argument("--sequence", type=positive, default=256, help="positions, half of them prompt (default: 256)")
    parser.add_argument("--batch", type=positive, default=4, help="sequences of a step (default: 4)")
    parser.add_argument("--micro-batch", type=positive, help="sequences of a forward pass (default: all)")
    parser.add_argument("--repetitions", type=positive, default=7, help="default: 7")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: of a busy machine (default: wall)"
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these alone, and what they are compared with")
    parser.add_argument("--no-peers", action="store_true", help="only this project's own steps")
    parser.add_argument("--output", required=True, help="folder for step.md and step.json, or step_vocab_N.*")
    return parser
