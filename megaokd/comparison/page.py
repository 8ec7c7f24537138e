"""report.md and report.html of a comparison, from the same sections. The second is one file: its figures are inside."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megaokd.comparison.figures import FIGURES, TOY_FIGURE, draw_figures, draw_toy
from megaokd.comparison.recipe import TIMES, Recipe
from megaokd.comparison.results import Results
from megaokd.comparison.tables import Table, notes_of, result_tables, search_tables, toy_table
from megaokd.comparison.toy import TOY_WORDS, fit_all
from megaokd.comparison.verdict import verdict
from megaokd.evaluation.environment import describe_environment, environment_lines
from megaokd.evaluation.report import markdown_table

_STYLE = """body { font: 16px/1.5 sans-serif; color: #222; max-width: 84rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin: 2.5rem 0 0.5rem; font-size: 1.2rem } p, ul { max-width: 48rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 0.8rem; font-variant-numeric: tabular-nums }
td, th { padding: 0.3rem 0.5rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { vertical-align: bottom; border-bottom: 2px solid #999; white-space: normal }
td:first-child, th:first-child { text-align: left }
img { max-width: min(100%, 68rem); margin-top: 1rem }
pre { overflow: auto; background: #f6f6f6; padding: 0.7rem; font-size: 0.8rem }"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands below it, in this order."""

    title: str
    words: Sequence[str] = ()
    items: Sequence[str] = ()
    table: Table | None = None
    figure: str | None = None
    """A file in figures/."""
    verbatim: str | None = None


def write_comparison_report(results: Results, recipe: Recipe) -> str:
    """Write both pages and the figures into the recipe's folder; the table and where the pages are, for a terminal."""
    folder = Path(recipe.folder)
    sections = _sections(results, recipe, folder / "figures")
    (folder / "report.md").write_text(_markdown(sections), encoding="utf-8")
    (folder / "report.html").write_text(_html(sections, folder / "figures"), encoding="utf-8")
    failed = [f"failed: {'; '.join(results.failures)}"] if results.failures else []
    table = markdown_table(*next(iter(result_tables(results, time=TIMES[recipe.time]).values())))
    return "\n".join(["", table, "", *failed, f"report: {folder / 'report.md'}, {folder / 'report.html'}"])


def _sections(results: Results, recipe: Recipe, figures: Path) -> list[Section]:
    """Draws the figures as well."""
    time = TIMES[recipe.time]
    drawn = draw_figures(results, time, figures)
    toy = fit_all()
    draw_toy(toy, figures)
    environment = [line.removeprefix("- ") for line in environment_lines(describe_environment())]
    summary = verdict(results, time)
    return [
        *([Section(title="In short", items=summary)] if summary else []),
        *(Section(title=title, table=table) for title, table in result_tables(results, recipe.reference, time).items()),
        Section(title="What was compared", items=notes_of(results, recipe)),
        *(Section(title=f"Failed: {name}", verbatim=words) for name, words in results.failures.items()),
        *(Section(title=FIGURES[name][0], words=[FIGURES[name][1]], figure=name) for name in drawn),
        *(Section(title=title, table=table) for title, table in search_tables(results).items()),
        Section(
            title="What a divergence keeps of several modes", words=TOY_WORDS, table=toy_table(toy), figure=TOY_FIGURE
        ),
        Section(title="This report", items=environment),
    ]


def _markdown(sections: Sequence[Section]) -> str:
    lines = ["# Comparison"]
    for section in sections:
        lines += ["", f"## {section.title}", ""]
        for text in section.words:
            lines += [text, ""]
        lines += [f"- {item}" for item in section.items]
        if section.table is not None:
            lines += [markdown_table(*section.table), ""]
        if section.figure is not None:
            lines += [f"![{section.title}](figures/{section.figure})"]
        if section.verbatim is not None:
            lines += ["````text", section.verbatim, "````"]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _html(sections: Sequence[Section], figures: Path) -> str:
    parts = ["<h1>Comparison</h1>"]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [f"<p>{html.escape(text)}</p>" for text in section.words]
        if section.items:
            parts.append(f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in section.items)}</ul>")
        if section.table is not None:
            header, rows = section.table
            parts += ['<div class="wide"><table>', _row("th", header), *(_row("td", row) for row in rows)]
            parts.append("</table></div>")
        if section.figure is not None:
            data = base64.b64encode((figures / section.figure).read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(section.title)}" src="data:image/png;base64,{data}">')
        if section.verbatim is not None:
            parts.append(f"<pre>{html.escape(section.verbatim)}</pre>")
    head = f'<meta charset="utf-8"><title>Comparison</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(parts) + "</body></html>\n"


def _row(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
