"""What a rank sends: calls and bytes of each kind of communication in each process group."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["all-reduce", "all-gather", "reduce-scatter", "send"]
Group = Literal["tensor", "trunk", "rows", "pipeline", "data", "ends", "world"]
"""Axes of the mesh; `ends` joins the first and the last stage (megaokd/mesh.py). Of a student that is split less than
its teacher, `trunk` has the tensor-parallel ranks that share its layers, `rows` one of each of these groups."""


@dataclass(frozen=True)
class Volume:
    """Calls, and the bytes of their whole tensors.

    Those are: of an all-reduce what is reduced, of an all-gather the result, of a reduce-scatter the input. How much of
    it crosses a link is the algorithm's affair (`time.py`).
    """

    calls: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Traffic:
    """Volumes by kind and group."""

    volumes: Mapping[tuple[Kind, Group], Volume] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: Kind, group: Group, num_bytes: int, calls: int = 1) -> "Traffic":
        """`calls` calls of together `num_bytes`; nothing where there is none."""
        return cls({(kind, group): Volume(calls, num_bytes)} if calls else {})

    def __iter__(self) -> Iterator[tuple[Kind, Group, Volume]]:
        return ((kind, group, volume) for (kind, group), volume in sorted(self.volumes.items()))

    def __add__(self, other: "Traffic") -> "Traffic":
        total = dict(self.volumes)
        for key, volume in other.volumes.items():
            known = total.get(key, Volume())
            total[key] = Volume(known.calls + volume.calls, known.bytes + volume.bytes)
        return Traffic(total)

    @property
    def total(self) -> Volume:
        """Of all kinds and groups."""
        volumes = self.volumes.values()
        return Volume(sum(volume.calls for volume in volumes), sum(volume.bytes for volume in volumes))

    def times(self, count: int) -> "Traffic":
        """The same so many times."""
        return Traffic({key: Volume(v.calls * count, v.bytes * count) for key, v in self.volumes.items() if count})
