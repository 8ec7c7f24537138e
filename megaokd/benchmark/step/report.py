"""step.md and step.json, or step_vocab_N of another vocabulary: the newest comparison of each pair of models."""

import statistics
from pathlib import Path
from typing import Any

from megaokd.benchmark.newest import keep_newest
from megaokd.benchmark.step.contenders import PLAIN
from megaokd.benchmark.step.operators import KINDS
from megaokd.benchmark.step.phases import PHASES
from megaokd.benchmark.step.world import Pair
from megaokd.evaluation.environment import environment_lines
from megaokd.evaluation.report import markdown_table

_HEAD = """# Time and memory of a training step

Medians of interleaved repetitions, one thread; +- is half of the distance between the quartiles. Each row is a process
of its own that sleeps while another steps. Before anything is timed, values are compared: losses, divergence and the
student's gradient norm of the first step are those of plain distillation (1e-5, relative), since modules begin as
nothing; with a cache or recomputation every value of every step is bit-identical. Memory is the peak in a
step: of all tensors by the allocator's events, and of the process beyond what it held before its models were built,
which counts what the C library keeps back in holes too. FLOPs are those of matrix products, counted from the
architectures (equal to torch's own counter, product by product), attention as whole squares; utilisation is of a
2048 x 2048 x 2048 product in the same run, without what is recomputed.

Beside a ratio to a peer stands its bound: of tokens/s, were our step its matrix products and nothing else, at the rate
of that product; of tensors, were they the fp32 weights, the student's gradients and its two moments and nothing else.
"""


def write_report(folder: Path, comparison: dict[str, Any]) -> str:
    """Put this comparison in the place of the last one of its pair; returns the whole page."""
    vocab = comparison["vocab"]
    stem = "step" if vocab == Pair().vocab else f"step_vocab_{vocab}"
    everything = keep_newest(folder / f"{stem}.json", comparison, "title", lambda one: str(one["title"]))
    head = _HEAD if stem == "step" else _HEAD.replace("step\n", f"step, vocabulary {vocab}\n", 1)
    page = "\n".join([head, *(_section(one) for one in everything)])
    (folder / f"{stem}.md").write_text(page, encoding="utf-8")
    return page


def _section(comparison: dict[str, Any]) -> str:
    lines = [f"## {comparison['title'][0].upper()}{comparison['title'][1:]}", "", f"    {comparison['command']}", ""]
    lines += environment_lines(comparison["environment"])
    lines += ["", _times(comparison), "", "Milliseconds of each phase:", "", _phases(comparison), ""]
    lines += ["Share of each kind of operator, matrix products and attention forward and backward:", ""]
    lines += [_operators(comparison), ""]
    lines += ["Targets:", "", *map(_target, comparison["targets"]), ""]
    return "\n".join(lines)


def _times(comparison: dict[str, Any]) -> str:
    header = (
        "",
        "ms",
        "+-",
        "tokens/s",
        "tensors MB",
        "process MB",
        "x plain",
        "FLOPs x plain",
        "over FLOPs",
        "utilisation",
    )
    plain = comparison["rows"][PLAIN]
    cells = []
    for name, row in comparison["rows"].items():
        if row["refused"]:
            cells.append([name, row["refused"], *[""] * (len(header) - 2)])
            continue
        quartiles = statistics.quantiles(row["seconds"], n=4) if len(row["seconds"]) > 1 else [0.0] * 3
        line = [name, f"{1e3 * row['median']:.0f}", f"{(quartiles[2] - quartiles[0]) / 2 / row['median']:.0%}"]
        line += [f"{comparison['input_tokens'] / row['median']:.0f}"]
        line += [f"{row[kind] / 1e6:.0f}" for kind in ("tensor_bytes", "process_bytes")]
        ratio = row["median"] / plain["median"] if plain.get("median") else None
        line.append("" if ratio is None else f"{ratio:.2f}")
        if ratio is not None and "flops" in row:
            predicted = row["flops"] / plain["flops"]
            line += [f"{predicted:.2f}", f"{ratio / predicted:.2f}", f"{row['utilisation']:.0%}"]
        cells.append([*line, *[""] * (len(header) - len(line))])
    note = f"\n\nThe product: {comparison['matmul_flops'] / 1e9:.0f} GFLOP/s."
    return markdown_table(header, cells) + note


def _phases(comparison: dict[str, Any]) -> str:
    rows = {name: row["phases"] for name, row in comparison["rows"].items() if row.get("phases")}
    return markdown_table(
        ("", *PHASES),
        [[name, *(f"{1e3 * phases[phase]:.1f}" for phase in PHASES)] for name, phases in rows.items()],
    )


def _operators(comparison: dict[str, Any]) -> str:
    rows = {name: row["operators"] for name, row in comparison["rows"].items() if row.get("operators")}
    return markdown_table(
        ("", *KINDS), [[name, *(f"{shares[kind]:.0%}" for kind in KINDS)] for name, shares in rows.items()]
    )


def _target(target: dict[str, Any]) -> str:
    sign = ">=" if target["at_least"] else "<="
    met = "met" if target["met"] else "**missed**"
    bound = f" (bound {target['best']:.3g})" if "best" in target else ""
    return f"- {target['text']}: {target['value']:.3g}{bound}, wanted {sign} {target['limit']}: {met}"
