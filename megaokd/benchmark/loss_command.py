"""`megaokd benchmark loss`: time and peak memory of the loss beside its alternatives, in one run.

On a CPU one thread. Large allocations cost more than the arithmetic unless THP_MEM_ALLOC_ENABLE=1 is in the
environment; the report states it, and it holds for all rows.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megaokd.benchmark.allocator import allocator_setting, measuring_command
from megaokd.option_types import positive

if TYPE_CHECKING:
    from megaokd.benchmark.report import Report, Table


def main(argv: Sequence[str]) -> int:
    """Measure, write the report, print it."""
    options = _parser().parse_args(argv)
    import torch

    from megaokd.benchmark.peers import versions
    from megaokd.benchmark.report import Report
    from megaokd.evaluation.environment import describe_environment

    torch.set_num_threads(1)
    environment = describe_environment() | {
        "peers": versions(),
        "threads": "1",
        "allocator": f"{allocator_setting()}, the same for all rows",
    }
    report = Report(measuring_command("loss", argv), environment)
    for table in _tables(report, options):
        report.tables.append(table)
        report.write(Path(options.output))  # what is measured is kept if the rest is interrupted
        print(f"measured: {table.title}", file=sys.stderr)
    print(report.markdown())
    return 0


def _tables(report: "Report", options: argparse.Namespace) -> Iterator["Table"]:
    import torch

    from megaokd.benchmark.fused import HIDDEN, measure_fused
    from megaokd.benchmark.logits import measure_logits
    from megaokd.benchmark.report import Table, Traffic
    from megaokd.benchmark.sharded import measure_sharded

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens, vocab, repetitions = options.tokens, options.vocab, options.repetitions
    work = {
        "both": "gradients of both models, ce + forward_kl and ce + 0.1 forward_kl",
        "student": "the student's gradient of forward_kl, frozen teacher",
        "jsd": "the student's gradient of jsd, frozen teacher",
    }
    for dtype in (torch.float32, torch.bfloat16):
        rows, floor, copied, absent = measure_logits(tokens, vocab, dtype, device, repetitions)
        report.absent |= absent
        size = tokens * vocab * dtype.itemsize
        for objective, group in rows.items():
            # Both tensors are read twice and each gradient written once.
            moved = (6 if objective == "both" else 5) * size
            traffic = Traffic(moved, copied, copy_bytes=2 * size) if device.type == "cuda" else None
            title = f"{str(dtype).removeprefix('torch.')}, {tokens} x {vocab}: {work[objective]}"
            yield Table(title, group, floor, size, traffic)
    forms = f"float32, {tokens} x {vocab}, hidden {HIDDEN}: heads and loss"
    yield Table(f"{forms}, one process", measure_fused(tokens, vocab, device, None, repetitions))
    if device.type != "cpu":
        return
    rows2 = measure_sharded(2, tokens, vocab, repetitions, fused=True)
    yield Table(f"{forms}, tensor-parallel 2, with the sum of hidden gradients", rows2)
    for ranks in (2, 4):
        sharded = measure_sharded(ranks, tokens, vocab, repetitions, fused=False)
        title = f"float32, {tokens} x {vocab}: gradients of both models, tensor-parallel {ranks} on gloo"
        yield Table(title, sharded, logit_bytes=tokens * vocab * 4 // ranks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megaokd benchmark loss", description=__doc__)
    parser.add_argument("--tokens", type=positive, default=1024, help="default: 1024")
    parser.add_argument("--vocab", type=positive, default=32000, help="a multiple of 4 (default: 32000)")
    parser.add_argument("--repetitions", type=positive, default=9, help="default: 9")
    parser.add_argument("--output", required=True, help="folder for loss.md and loss.json")
    return parser
