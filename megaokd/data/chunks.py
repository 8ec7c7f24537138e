"""What every source of records gives: chunks, cut by whoever reads and parsed by whoever needs the records.

The latter may be another process. A chunk knows where reading goes on after it, so that a job that was killed can
continue there; where it is cut follows from the source alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from megaokd.errors import UserError

CHUNK_BYTES = 1 << 19
"""Of lines or of a table's values: a chunk ends behind the line that exceeds them, or with the row before."""


class MalformedRecordError(UserError):
    """One record that is not what it should be; the ones after it can still be read."""


Columns = Callable[[Sequence[str]], list[str]]
"""The names of a table's columns -> those that are read."""
Parsed = tuple[str, dict[str, Any] | MalformedRecordError]
"""Where a record stands (`file:line` or `file, row N`), and its fields."""


@dataclass(frozen=True)
class Position:
    """Where a chunk begins in its source."""

    offset: int = 0
    """Bytes of a text file, rows of anything else."""
    line: int = 0
    """Lines of a text file in front of it."""


class Chunk(Protocol):
    """Records that stand together."""

    @property
    def end(self) -> Position:
        """Where the next chunk begins."""
        ...

    @property
    def size(self) -> float:
        """Its part of `source_size`; 1 a record where that is not known."""
        ...

    def parse(self) -> Iterator[Parsed]:
        """The records, in order."""
        ...
