"""`megaokd benchmark WHAT`: measurements beside alternatives, in one run each."""

import importlib
import sys
from collections.abc import Sequence

from megaokd.cli import run
from megaokd.errors import UserError

# What is measured -> (module with `main(argv)`, one line of help).
BENCHMARKS: dict[str, tuple[str, str]] = {
    "loss": ("megaokd.benchmark.loss_command", "time and peak memory of the loss beside its alternatives"),
    "step": ("megaokd.benchmark.step_command", "a training step, its parts and its memory, beside other loops"),
    "growth": ("megaokd.benchmark.growth_command", "how time and memory of a step grow, beside what is predicted"),
    "sampling": ("megaokd.benchmark.sampling_command", "an update on the student's own text over an update of OKD"),
}


def main(argv: Sequence[str]) -> int:
    """Dispatch to a benchmark."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, BENCHMARKS))
        print("usage: megaokd benchmark WHAT [...]   (megaokd benchmark WHAT --help for its options)\n")
        print("\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in BENCHMARKS.items()))
        return 0 if argv else 2
    if argv[0] not in BENCHMARKS:
        raise UserError(f"unknown benchmark {argv[0]!r}; one of {', '.join(BENCHMARKS)}")
    status: int = importlib.import_module(BENCHMARKS[argv[0]][0]).main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
