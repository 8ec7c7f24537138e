"""Several evaluated models side by side: one table, the same prompts with every model's generation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaokd.errors import UserError
from megaokd.evaluation.environment import environment_lines
from megaokd.evaluation.report import GENERATIONS_FILE, RESULT_FILE, markdown_table


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model: what `megaokd evaluate` wrote about it and how long its training took."""

    method: str
    evaluation: dict[str, Any]
    generations: list[dict[str, Any]]
    training_seconds: float


def read_entry(method: str, evaluation_folder: Path, checkpoint_folder: Path) -> Entry:
    """Collect an entry from the folders of `megaokd evaluate` and `megaokd train`.

    Raises:
        UserError: one of their files is missing.
    """
    try:
        evaluation = json.loads((evaluation_folder / RESULT_FILE).read_text(encoding="utf-8"))
        summary = json.loads((checkpoint_folder / "summary.json").read_text(encoding="utf-8"))
        lines = (evaluation_folder / GENERATIONS_FILE).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{error.filename}: missing; the step that writes it did not finish") from None
    return Entry(
        method=method,
        evaluation=evaluation,
        generations=[json.loads(line) for line in lines],
        training_seconds=summary["training_seconds"],
    )


def comparison_table(entries: Sequence[Entry]) -> str:
    """Markdown: method, parameters, cross-entropy, forward KL to the original teacher, ROUGE-L, training seconds."""
    header = ("method", "parameters", "cross-entropy", "forward KL to teacher", "ROUGE-L", "training seconds")
    return markdown_table(header, [_row(entry) for entry in entries])


def side_by_side(entries: Sequence[Entry], count: int = 3) -> str:
    """The first `count` prompts with their reference and every model's generation."""
    width = max(len("reference"), *(len(entry.method) for entry in entries))
    blocks = []
    for index in range(min(count, len(entries[0].generations))):
        first = entries[0].generations[index]
        texts = [("reference", first["references"][0])]
        texts += [(entry.method, entry.generations[index]["generation"]) for entry in entries]
        lines = [f"{name:<{width}} | {' '.join(text.split())}" for name, text in texts]
        blocks.append("\n".join([first["prompt"], *lines]))
    return "\n\n".join(blocks)


def write_comparison(
    entries: Sequence[Entry], folder: Path, title: str, notes: Sequence[str], environment: dict[str, str]
) -> None:
    """Write results.md and results.json into `folder`."""
    page = [f"# {title}", "", comparison_table(entries), "", *notes, "", *environment_lines(environment), ""]
    page += ["## Generations", "", "````text", side_by_side(entries), "````", ""]
    (folder / "results.md").write_text("\n".join(page), encoding="utf-8")
    rows = [
        {"method": entry.method, "training_seconds": entry.training_seconds, **_measures(entry)} for entry in entries
    ]
    values = {"title": title, "environment": environment, "notes": list(notes), "results": rows}
    (folder / "results.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _row(entry: Entry) -> tuple[str, ...]:
    evaluation = entry.evaluation
    divergence = evaluation["forward_kl"]
    return (
        entry.method,
        f"{evaluation['parameters']:,}",
        f"{evaluation['cross_entropy']:.4f}",
        "-" if divergence is None else f"{divergence:.4f}",
        f"{evaluation['rouge_l']:.4f}",
        f"{entry.training_seconds:.1f}",
    )


def _measures(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in entry.evaluation.items() if name != "environment"}
