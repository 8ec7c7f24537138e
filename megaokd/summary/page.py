"""summary.html, from the lines of log.jsonl."""

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from megaokd.summary.chart import Series, line_chart
from megaokd.version import __version__

Line = Mapping[str, Any]
_STYLE = """body { font: 15px/1.5 sans-serif; max-width: 78rem; margin: 1.5rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 0.9rem } td, th { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd;
text-align: left; vertical-align: top } td.number { text-align: right; font-variant-numeric: tabular-nums }
svg { margin: 0 0.6rem 0.6rem 0; font: 11px sans-serif; fill: #444 } svg .title { font-size: 13px; font-weight: bold }
svg .grid { stroke: #e3e3e3 } .samples td {
white-space: pre-wrap } .warnings td { background: #fff4e5 } pre { background: #f6f6f6; padding: 0.8rem;
overflow: auto } h2 { margin: 1.4rem 0 0.4rem }"""
# Question -> chart -> label -> name in log.jsonl.
_CHARTS: dict[str, dict[str, dict[str, str]]] = {
    "Is it learning?": {
        "Student: cross-entropy, nats a token": {
            "training": "train/student_ce",
            "validation": "validation/student_ce",
        },
        "KL(teacher || student), nats a token": {
            "training": "train/forward_kl",
            "validation": "validation/forward_kl",
        },
        "Top-1 agreement with the teacher": {
            "training": "train/top1_agreement",
            "validation": "validation/top1_agreement",
        },
    },
    "Is the teacher drifting?": {
        "KL(adapted || original teacher), nats a token": {
            "training": "train/teacher_drift",
            "validation": "validation/teacher_drift",
        },
        "Teacher: cross-entropy, nats a token": {
            "training": "train/teacher_ce",
            "validation": "validation/teacher_ce",
            "original, validation": "validation/original_teacher_ce",
        },
    },
    "Is it fast?": {
        "Tokens a second": {"all": "speed/tokens_per_second", "with a loss": "speed/loss_tokens_per_second"},
        "Seconds a step": {"whole": "speed/step_seconds", "waiting for data": "speed/data_seconds"},
        "Peak memory of rank 0, bytes": {"bytes": "memory/peak_bytes"},
    },
    "Optimizer": {
        "Gradient norm before clipping": {"student": "gradient_norm/student", "modules": "gradient_norm/online"},
        "Learning rate": {"student": "learning_rate/student", "modules": "learning_rate/online"},
    },
}
_LOGARITHMIC = "Gradient norm before clipping"


def summary_page(name: str, lines: Sequence[Line], config: str) -> str:
    """The whole page. `lines` as `read_journal` gives them, `config` the configuration's YAML, "" where unknown."""
    curves = _curves(lines)
    parts = [f"<h1>{html.escape(name)}</h1>", f"<p>{html.escape(_state(lines))}</p>", _warnings(lines)]
    for question, charts in _CHARTS.items():
        drawn = [
            line_chart(
                title,
                {label: curves.get(key, []) for label, key in keys.items()},
                logarithmic=title == _LOGARITHMIC,
            )
            for title, keys in charts.items()
        ]
        if any(drawn):
            parts.append(f"<h2>{html.escape(question)}</h2>{''.join(drawn)}")
    parts += [_samples(lines), _modules(lines), _last_numbers(curves), _messages(lines)]
    if config:
        parts.append(f"<h2>Configuration</h2><pre>{html.escape(config)}</pre>")
    head = f'<meta charset="utf-8"><title>{html.escape(name)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(parts) + "</body></html>\n"


def _curves(lines: Sequence[Line]) -> dict[str, Series]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line["kind"] in ("train", "validation"):
            for name, value in line.items():
                if "/" in name:
                    curves.setdefault(name, []).append((line["step"], value))
    return dict(curves)


def _state(lines: Sequence[Line]) -> str:
    reached = max((line["step"] for line in lines if line["kind"] == "train"), default=0)
    saved = max((line["step"] for line in lines if line["kind"] == "checkpoint"), default=0)
    warnings = sum(line["kind"] == "warning" for line in lines)
    words = f"Step {reached}; last checkpoint: {f'step {saved}' if saved else 'none'}; {warnings} warning"
    words += "." if warnings == 1 else "s."
    return f"{words} Written {datetime.now():%Y-%m-%d %H:%M} by MegaOKD {__version__}."


def _warnings(lines: Sequence[Line]) -> str:
    rows = [(line["step"], line["seen"], line["advice"]) for line in lines if line["kind"] == "warning"]
    return f"<h2>Warnings</h2>{_table(('step', 'seen', 'what to do'), rows, 'warnings')}" if rows else ""


def _modules(lines: Sequence[Line]) -> str:
    last = next((line for line in reversed(lines) if line["kind"] == "modules"), None)
    if last is None:
        return ""
    rows = sorted(last["norms"].items(), key=lambda item: -item[1])
    return f"<h2>Online modules: norms at step {last['step']}</h2>{_table(('module', 'norm'), rows)}"


def _samples(lines: Sequence[Line]) -> str:
    last = next((line for line in reversed(lines) if line["kind"] == "samples"), None)
    if last is None:
        return ""
    rows = [(sample["prompt"], sample["reference"], sample["student"] or "(nothing)") for sample in last["samples"]]
    header = ("prompt", "response in the data", "the student's")
    return f"<h2>Samples at step {last['step']}</h2>{_table(header, rows, 'samples')}"


def _last_numbers(curves: Mapping[str, Series]) -> str:
    rows = [(name, points[-1][1], int(points[-1][0])) for name, points in sorted(curves.items())]
    return f"<h2>Last numbers</h2>{_table(('name', 'value', 'step'), rows)}" if rows else ""


def _messages(lines: Sequence[Line]) -> str:
    items = "".join(f"<li>{html.escape(line['text'])}</li>" for line in lines if line["kind"] == "message")
    return f"<h2>Messages</h2><ul>{items}</ul>" if items else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> str:
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    names = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    return f'<table class="{kind}"><tr>{names}</tr>{body}</table>'


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return f"<td>{html.escape(value)}</td>"
    return f'<td class="number">{value if isinstance(value, int) else format(value, ".6g")}</td>'
