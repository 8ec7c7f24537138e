"""The table of a run, as Markdown and as JSON."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaokd.benchmark.measure import Row
from megaokd.evaluation.environment import environment_lines


@dataclass
class Table:
    """Rows that do the same work; ratios are to the first of them, and to the floor where there is one."""

    title: str
    rows: list[Row]
    floor: Row | None = None
    logit_bytes: int | None = None  # of one model: the unit of memory in the table
    traffic: "Traffic | None" = None  # on a GPU


@dataclass
class Traffic:
    """What a call must move, and a plain copy in the same run: its speed is the memory's."""

    call_bytes: int
    copy: Row
    copy_bytes: int

    @property
    def copy_speed(self) -> float:
        """Bytes a second."""
        return self.copy_bytes / self.copy.median

    def cells(self, row: Row) -> list[str]:
        """GB/s of a row, and its share of the copy's."""
        speed = self.call_bytes / row.median
        return [f"{speed / 1e9:.0f}", f"{speed / self.copy_speed:.0%}"]


@dataclass
class Report:
    """Everything one run measured."""

    command: str
    environment: dict[str, str]
    tables: list[Table] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """The whole report."""
        lines = ["# Speed and memory of the loss", "", f"    {self.command}", ""]
        lines += environment_lines(self.environment)
        lines += [
            "",
            "Medians of interleaved repetitions; +- is half of the distance between the quartiles. Memory is the most",
            "that torch's allocator held beyond the inputs and the gradients returned. Values and gradients were",
            "compared with the fp64 reference first (the fused form's with fp32 autograd); a row that disagrees has no",
            "ratio.",
        ]
        for table in self.tables:
            lines += ["", f"## {table.title}", "", *_table(table)]
        if self.absent:
            lines += ["", "## Absent", "", *(f"- {name}: {reason}" for name, reason in self.absent.items())]
        return "\n".join(lines) + "\n"

    def data(self) -> dict[str, Any]:
        """The same for a program; seconds and bytes."""
        tables = [
            {
                "title": table.title,
                "floor_seconds": table.floor.seconds if table.floor else None,
                "rows": [
                    {"name": row.name, "seconds": row.seconds, "extra_bytes": row.extra_bytes, "refused": row.refused}
                    for row in table.rows
                ],
            }
            for table in self.tables
        ]
        about = {"command": self.command, "environment": self.environment, "absent": self.absent}
        return about | {"tables": tables}

    def write(self, folder: Path) -> None:
        """loss.md and loss.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "loss.md").write_text(self.markdown(), encoding="utf-8")
        (folder / "loss.json").write_text(json.dumps(self.data(), indent=1), encoding="utf-8")


def _table(table: Table) -> list[str]:
    heads = ["", "ms", "+-", "x ours"]
    heads += ["x floor"] if table.floor else []
    heads += ["extra memory, MB", "in logit tensors"] if table.logit_bytes else ["extra memory, MB", "x ours"]
    heads += ["GB/s", f"of a copy's {table.traffic.copy_speed / 1e9:.0f}"] if table.traffic else []
    lines = [_line(heads), _line(["---"] * len(heads))]
    if table.floor:
        low = table.floor
        lines.append(
            _line(["floor", f"{1e3 * low.median:.1f}", f"{low.spread:.0%}", "", "1", *[""] * (len(heads) - 5)])
        )
    first = table.rows[0]
    for row in table.rows:
        if row.refused or not row.seconds:
            lines.append(_line([row.name, f"disagrees: {row.refused}", *[""] * (len(heads) - 2)]))
            continue
        cells = [row.name, f"{1e3 * row.median:.1f}", f"{row.spread:.0%}"]
        cells.append(f"{row.median / first.median:.2f}" if first.seconds else "")
        cells += [f"{row.median / table.floor.median:.2f}"] if table.floor else []
        cells.append(f"{row.extra_bytes / 1e6:.1f}")
        if table.logit_bytes:
            cells.append(f"{row.extra_bytes / table.logit_bytes:.3f}")
        else:
            cells.append(f"{row.extra_bytes / first.extra_bytes:.2f}")
        cells += table.traffic.cells(row) if table.traffic else []
        lines.append(_line(cells))
    return lines


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
