"""report.md and report.html of a comparison. The second is one file: its figures are inside."""

import base64
import html
from collections import Counter
from pathlib import Path

from megaokd.comparison.figures import FIGURES, draw_figures
from megaokd.comparison.recipe import TIMES, Recipe
from megaokd.comparison.results import ADAPTED, MEASURES, Measured, MethodResult, Results
from megaokd.evaluation.environment import describe_environment, environment_lines
from megaokd.evaluation.report import markdown_table

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""
_TIME_WORDS = {
    "wall": "the clock, which counts what else the machine did",
    "cpu": "CPU seconds, which leave out what else the machine did",
}
_STYLE = """body { font: 16px/1.5 sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 0.85rem } td, th { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ccc;
text-align: right } td:first-child, th:first-child { text-align: left }
img { max-width: 100% } pre { overflow: auto }"""


def write_comparison_report(results: Results, recipe: Recipe) -> str:
    """Write both pages and the figures into the recipe's folder; the table and where the pages are, for a terminal."""
    folder = Path(recipe.folder)
    drawn = draw_figures(results, TIMES[recipe.time], folder / "figures")
    tables = _tables(results)
    notes = _notes(results, recipe)
    environment = environment_lines(describe_environment())
    (folder / "report.md").write_text(_markdown(results, tables, notes, environment, drawn), encoding="utf-8")
    page = _html(results, tables, notes, environment, [folder / "figures" / name for name in drawn])
    (folder / "report.html").write_text(page, encoding="utf-8")
    failed = [f"failed: {', '.join(results.failures)}"] if results.failures else []
    table = markdown_table(*next(iter(tables.values())))
    return "\n".join(["", table, "", *failed, f"report: {folder / 'report.md'}, {folder / 'report.html'}"])


def _tables(results: Results) -> dict[str, Table]:
    tables = {"Students, against the original teacher": _table(results.methods, MEASURES)}
    adapted = [method for method in results.methods if method.adapted]
    if adapted:
        rows = [(method.name, *(_cell(method.adapted.get(key), key) for key in ADAPTED)) for method in adapted]
        tables["Students, against their adapted teacher"] = (("method", *(MEASURES[key] for key in ADAPTED)), rows)
    return tables


def _table(methods: list[MethodResult], columns: dict[str, str]) -> Table:
    header = ("method", "seeds", "updates", *columns.values())
    rows = [
        (
            method.name,
            str(len(method.seeds)),
            " / ".join(map(str, sorted(set(method.steps)))) or "-",
            *(_cell(method.measures.get(key), key) for key in columns),
        )
        for method in methods
    ]
    return header, rows


def _cell(measured: Measured | None, key: str) -> str:
    if measured is None:
        return "-"
    digits = 1 if key in TIMES.values() else 4
    spread = "" if measured.interval is None else f" ± {measured.interval:.{digits}f}"
    return f"{measured.mean:.{digits}f}{spread}"


def _notes(results: Results, recipe: Recipe) -> list[str]:
    evaluation = results.evaluation
    notes = [
        "Mean ± half the 95% confidence interval over seeds (Student's t, each method by itself). With a seed all "
        "methods share initial student, batches and number of updates. Cross-entropy and divergences in nats a token.",
        f"Seeds: {', '.join(map(str, recipe.seeds))}. Processes of a training run: {recipe.processes}.",
        "Times are those in training steps, without start, validation and checkpoints: seconds by the clock, and CPU "
        f"seconds of all threads of all processes. Methods are compared by {_TIME_WORDS[recipe.time]}.",
    ]
    if evaluation:
        notes.append(
            f"On {evaluation['data']}: {evaluation['examples']:,} examples, {evaluation['tokens']:,} response tokens; "
            f"teacher: {evaluation['teacher'] or 'none'}; {evaluation['parameters']:,} parameters a student."
        )
        notes.append(_generations(recipe))
    places = Counter(
        f"{place['commit']}, {place['cpu']}, {place.get('gpu', 'no GPU')}" for place in results.environments
    )
    notes += [f"Evaluated at {place}: {count} cells." for place, count in places.items()]
    dates = sorted(place["date"] for place in results.environments)
    if dates:
        notes.append(f"Cells were finished from {dates[0]} to {dates[-1]}.")
    return notes


def _generations(recipe: Recipe) -> str:
    options = recipe.evaluation
    if options.generate == 0:
        return "No generations, so no ROUGE-L."
    kind = "greedy" if options.seeds == 0 else f"{options.seeds} sampled"
    return f"ROUGE-L of {options.generate} prompts, {kind}, at most {options.max_new_tokens} new tokens."


def _markdown(
    results: Results, tables: dict[str, Table], notes: list[str], environment: list[str], drawn: list[str]
) -> str:
    lines = ["# Comparison", ""]
    for title, table in tables.items():
        lines += [f"## {title}", "", markdown_table(*table), ""]
    for note in notes:
        lines += [note, ""]
    if results.failures:
        lines += ["## Failed cells", ""]
        for name, words in results.failures.items():
            lines += [f"{name}:", "", "````text", words, "````", ""]
    for name in drawn:
        lines += [f"## {FIGURES[name]}", "", f"![{FIGURES[name]}](figures/{name})", ""]
    return "\n".join([*lines, "## This report", "", *environment, ""])


def _html(
    results: Results, tables: dict[str, Table], notes: list[str], environment: list[str], figures: list[Path]
) -> str:
    parts = ["<h1>Comparison</h1>"]
    for title, (header, rows) in tables.items():
        parts += [f"<h2>{html.escape(title)}</h2><table>", _row("th", header), *(_row("td", row) for row in rows)]
        parts.append("</table>")
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    if results.failures:
        parts.append("<h2>Failed cells</h2>")
        parts += [
            f"<p>{html.escape(name)}:</p><pre>{html.escape(words)}</pre>" for name, words in results.failures.items()
        ]
    for path in figures:
        data = base64.b64encode(path.read_bytes()).decode()
        title = html.escape(FIGURES[path.name])
        parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">')
    items = "".join(f"<li>{html.escape(line.removeprefix('- '))}</li>" for line in environment)
    parts.append(f"<h2>This report</h2><ul>{items}</ul>")
    head = f'<meta charset="utf-8"><title>Comparison</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(parts) + "</body></html>\n"


def _row(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
