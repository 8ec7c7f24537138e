"""Why layouts cannot be built: what `megaokd train` would say of each, sentences that differ in numbers only as one."""

import re
from collections import Counter

from megaokd.errors import UserError

MOST_REASONS = 2
_NUMBERS = re.compile(r"\d[\d, ]*")


class Refused:
    """The layouts of a search that cannot be built."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, error: UserError) -> None:
        """One more, refused for this reason."""
        kind = _NUMBERS.sub("#", str(error))
        self._counts[kind] += 1
        self._first.setdefault(kind, str(error))

    def __len__(self) -> int:
        return self._counts.total()

    def told(self) -> str:
        """The commonest reasons, each with its count and as it was given first; for a sentence."""
        common = self._counts.most_common(MOST_REASONS)
        reasons = [f'{count} with "{self._first[kind]}"' for kind, count in common]
        others = len(self) - sum(count for _, count in common)
        return f"refused are {', '.join([*reasons, *([f'{others} with other reasons'] if others else [])])}"
