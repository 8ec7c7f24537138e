"""sampling.md, sampling.json and sampling.png: the newest comparison of each pair of models."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megaokd.benchmark.newest import keep_newest
from megaokd.benchmark.sampling.gpu import GPU, PROMPT, expected
from megaokd.benchmark.sampling.plot import CLAIM, draw
from megaokd.benchmark.sampling.updates import CACHED, OKD, ON_POLICY
from megaokd.cost.hardware import Assumptions, find_gpu
from megaokd.evaluation.environment import environment_lines
from megaokd.evaluation.report import markdown_table

_HEAD = """# Updates on the student's own text, against OKD

The time of one fully on-policy update (GKD: the student writes every response, then both models read it, a frozen
teacher, JSD) over the time of one update of OKD (LoRA in the teacher's last quarter, on the data's text), without and
with the trunk cache. Everything is this project's: the generator keeps keys and values, and draws at temperature 1.
OKD's paper claims up to 4 times less training time than methods that sample.

Medians of interleaved repetitions; +- is half of the range. Compared first: greedy responses are the likeliest tokens
of a full forward of the student, every update trains on as many tokens as its cell says, and every value with the cache
is bit-identical to that without.

What is simpler here than in a run, and in whose favour:

- Responses are forced to their length: none ends early, no row waits for a longer one. Real ones end at different
  tokens, and short ones wait in the batch. In favour of sampling.
- The student writes in every update. GKD's usual half of them, or DistiLLM's buffer, costs less. In favour of OKD.
- The cache is read here; its first epoch fills it, at the cost of an uncached update. In favour of OKD.
- The ratio is of updates. How many of them a method needs for a quality is not asked.
- Models are random and small, in fp32 with one thread, so that a token's time on this machine says little of a GPU's.
- The cost model counts calls, FLOPs and bytes. It leaves out what the loss does with its logits, what an optimizer step
  costs whatever its size, and that products of few rows are slower than those of many.

![Time of an on-policy update over one of OKD](sampling.png)
"""


def write_report(folder: Path, comparison: dict[str, Any]) -> str:
    """Put this comparison in the place of the last one of its pair; returns the whole page."""
    everything = keep_newest(folder / "sampling.json", comparison, "title", lambda one: one["ratio"])
    page = "\n".join([_HEAD, _claim(everything), *map(_section, everything), _on_a_gpu()])
    (folder / "sampling.md").write_text(page, encoding="utf-8")
    draw(everything, folder / "sampling.png")
    return page


def ratio(cell: Mapping[str, Any], name: str, key: str = "median") -> float:
    """On-policy over an update of OKD."""
    return float(cell[key][ON_POLICY] / cell[key][name])


def _claim(comparisons: Sequence[Mapping[str, Any]]) -> str:
    lines = ["## Where 4 times holds", ""]
    for name in (OKD, CACHED):
        cells = [(one["ratio"], cell) for one in comparisons for cell in one["cells"]]
        holds = [(size, cell) for size, cell in cells if ratio(cell, name) >= CLAIM]
        found = [ratio(cell, name) for _, cell in cells]
        lines.append(
            f"- against {name}: in {len(holds)} of {len(cells)} cells; ratios from {min(found):.2f} to {max(found):.2f}"
        )
        for size, cell in holds:
            where = f"teacher {size:.1f} x student, batch {cell['rows']}, response {cell['response']}"
            lines.append(f"    - {where}: {ratio(cell, name):.2f}")
    errors = [abs(error) for one in comparisons for cell in one["cells"] for error in _errors(cell)]
    lines += [
        "",
        f"The cost model's error in the ratio, over all cells: {statistics.median(errors):.0%} in the median, "
        f"{max(errors):.0%} at most.",
        "",
    ]
    return "\n".join(lines)


def _errors(cell: Mapping[str, Any]) -> list[float]:
    return [ratio(cell, name, "predicted") / ratio(cell, name) - 1 for name in (OKD, CACHED)]


def _section(comparison: Mapping[str, Any]) -> str:
    constants = comparison["constants"]
    lines = [f"## {comparison['title'][0].upper()}{comparison['title'][1:]}", "", f"    {comparison['command']}", ""]
    lines += [*environment_lines(comparison["environment"]), "", _table(comparison["cells"]), ""]
    lines += [
        "The model's constants, measured in the same run on parts that are no update: "
        f"{constants['student_flops'] / 1e9:.1f} GFLOP/s in a pass through the student's layers, "
        f"{constants['teacher_flops'] / 1e9:.1f} through the teacher's, {constants['bandwidth'] / 1e9:.1f} GB/s, "
        f"{constants['call_s'] * 1e6:.1f} us a call.",
        "",
    ]
    return "\n".join(lines)


def _table(cells: Sequence[Mapping[str, Any]]) -> str:
    header = (
        "batch",
        "response",
        "on-policy ms",
        "+-",
        "of it writing",
        "predicted",
        "OKD ms",
        "cached ms",
        "x OKD",
        "predicted",
        "x cached",
        "predicted",
        "writing waits for",
    )
    rows = []
    for cell in cells:
        median = cell["median"]
        line = [str(cell["rows"]), str(cell["response"]), f"{1e3 * median[ON_POLICY]:.0f}", _spread(cell)]
        line += [f"{1e3 * cell['writing']:.0f}", f"{1e3 * cell['predicted_writing']:.0f}"]
        line += [f"{1e3 * median[name]:.0f}" for name in (OKD, CACHED)]
        for name in (OKD, CACHED):
            line += [f"{ratio(cell, name):.2f}", f"{ratio(cell, name, 'predicted'):.2f}"]
        rows.append([*line, cell["bound"]])
    return markdown_table(header, rows)


def _spread(cell: Mapping[str, Any]) -> str:
    """Half of the range: there are too few repetitions for quartiles."""
    seconds = cell["seconds"][ON_POLICY]
    return f"{(max(seconds) - min(seconds)) / 2 / cell['median'][ON_POLICY]:.0%}"


def _on_a_gpu() -> str:
    gpu, assumed = find_gpu(GPU), Assumptions()
    header = ("pair", "batch", "response", "x OKD", "x cached", "waits for", "x OKD", "x cached", "waits for")
    rows = [
        [
            one.pair,
            str(one.rows),
            str(one.response),
            f"{one.uncached:.1f}",
            f"{one.cached:.1f}",
            one.bound,
            f"{one.uncached_graphs:.1f}",
            f"{one.cached_graphs:.1f}",
            one.bound_graphs,
        ]
        for one in expected()
    ]
    return "\n".join(
        [
            "## What to expect on a GPU",
            "",
            f"Nothing here was measured. {gpu.name}: {gpu.bf16 / 1e12:.0f} TFLOP/s in bf16,",
            f"{gpu.bandwidth / 1e12:.2f} TB/s; assumed {assumed.efficiency:.0%} of the matrix rate,",
            f"{assumed.link_efficiency:.0%} of bandwidths, {assumed.latency_s * 1e6:.0f} us a collective,",
            f"{assumed.call_s * 1e6:.0f} us of the host for each kernel; prompts of {PROMPT}. The last three columns:",
            "where calls cost nothing in either update, as with CUDA graphs, which this project does not have.",
            "",
            markdown_table(header, rows),
            "",
        ]
    )
