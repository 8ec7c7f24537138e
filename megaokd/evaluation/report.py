"""An evaluation on disk: evaluation.json, evaluation.md and generations.jsonl, or generations.SET.jsonl of each set."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megaokd.errors import UserError
from megaokd.evaluation.environment import describe_environment, environment_lines
from megaokd.evaluation.evaluate import Evaluation, Generation, GenerationOptions
from megaokd.evaluation.text_metrics import TextMetrics
from megaokd.evaluation.token_metrics import TokenMetrics
from megaokd.files import write_json, write_whole

RESULT_FILE = "evaluation.json"
GENERATIONS_FILE = "generations.jsonl"


def check_no_report(folder: str | Path) -> None:
    """Refuse a folder that holds an evaluation."""
    if (Path(folder) / RESULT_FILE).exists():
        raise UserError(f"{folder}: holds an evaluation already; give another --output, or --overwrite to replace it")


def write_report(result: Evaluation, folder: str | Path) -> None:
    """Write the files into `folder`, made if needed, in place of a former evaluation's; generations where there are.

    Each is written whole or not at all, evaluation.json last: where it stands, the others do.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    environment = describe_environment()
    for former in (RESULT_FILE, GENERATIONS_FILE, *(path.name for path in folder.glob("generations.*.jsonl"))):
        (folder / former).unlink(missing_ok=True)
    for file, generations in generation_files(result).items():
        lines = [json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in generations]
        write_whole(folder / file, "".join(lines))
    write_whole(folder / "evaluation.md", markdown(result, environment))
    write_json(folder / RESULT_FILE, {**as_dict(result), "environment": environment})


def generation_files(result: Evaluation) -> Mapping[str, Sequence[Generation]]:
    """Name of a file -> what it holds."""
    files = {GENERATIONS_FILE: result.generations} if result.generations else {}
    return files | {f"generations.{name}.jsonl": texts.generations for name, texts in result.sets.items()}


def as_dict(result: Evaluation) -> dict[str, Any]:
    """The result as flat JSON values; the generations are counted, their text has a file of its own."""
    values = dataclasses.asdict(result)
    values.update(values.pop("metrics"))
    values.update(values.pop("texts") or {})
    values["adapted"] = values.pop("adapted")
    values["generations"] = len(result.generations)
    values["sets"] = {
        name: {**dataclasses.asdict(texts.metrics), "generations": len(texts.generations)}
        for name, texts in result.sets.items()
    }
    return values


def markdown(result: Evaluation, environment: dict[str, str]) -> str:
    """A page that can be read on its own: where from, the measures, the environment, three generations of each set."""
    lines = [f"# Evaluation of {result.model}", "", summary(result), "", *environment_lines(environment)]
    titled = {"Generations": result.generations} if result.generations else {}
    titled |= {f"Generations for {name}": texts.generations for name, texts in result.sets.items()}
    for title, generations in titled.items():
        lines += ["", f"## {title}", "", samples(generations[:3])]
    return "\n".join(lines) + "\n"


def summary(result: Evaluation) -> str:
    """What was evaluated on what, and the table of its measures."""
    lines = [f"On {result.data}: {result.examples:,} examples, {result.metrics.tokens:,} response tokens."]
    if result.teacher is not None:
        lines.append(f"Divergences are to {result.teacher}.")
    if result.adapted_teacher is not None:
        lines.append(f"The adapted teacher is {result.adapted_teacher}.")
    rows = [(name, f"{value:.4f}") for name, value in _measures(result) if value is not None]
    return "\n".join([*lines, "", markdown_table(("measure", "value"), rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that is aligned in the terminal too."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def samples(generations: Sequence[Generation]) -> str:
    """Prompt, reference and generation of each, as quoted blocks."""
    return "\n\n".join(
        f"````text\n{item.prompt}\n--- reference\n{item.references[0]}\n--- generation\n{item.generation}\n````"
        for item in generations
    )


def _measures(result: Evaluation) -> list[tuple[str, float | None]]:
    metrics = result.metrics
    rows = [
        ("cross-entropy, nats a token", metrics.cross_entropy),
        ("expected calibration error", metrics.calibration_error),
        *_against("teacher", metrics),
    ]
    if result.adapted is not None:
        rows += _against("adapted teacher", result.adapted)
    if result.texts is not None:
        rows += _of_texts(result.texts, len(result.generations), result.options)
    for name, texts in result.sets.items():
        of_set = _of_texts(texts.metrics, len(texts.generations), result.options)
        rows += [(f"{name}: {measure}", value) for measure, value in of_set]
    return rows


def _of_texts(texts: TextMetrics, count: int, options: GenerationOptions) -> list[tuple[str, float | None]]:
    kind = "greedy" if options.seeds == 0 else f"sampled (temperature {options.temperature}, top-p {options.top_p})"
    return [
        (f"ROUGE-L of {count} {kind} generations", texts.rouge_l),
        (f"+/- (95%, over {options.seeds} seeds)", texts.rouge_l_interval),
        ("distinct-1", texts.distinct_1),
        ("distinct-2", texts.distinct_2),
        ("length / length of the reference", texts.length_ratio),
    ]


def _against(name: str, metrics: TokenMetrics) -> list[tuple[str, float | None]]:
    return [
        (f"{name}'s cross-entropy", metrics.teacher_cross_entropy),
        (f"forward KL({name}, model)", metrics.forward_kl),
        (f"reverse KL(model, {name})", metrics.reverse_kl),
        (f"top-1 agreement with the {name}", metrics.top1_agreement),
    ]
