"""What a layer's cost depends on beside its architecture: the micro-batch, how a rank holds the layer, what learns.

Legend: T tokens of a micro-batch, To those of them that a rank holds outside the regions.
"""

from dataclasses import dataclass

from megaokd.config import OnlineModules
from megaokd.cost.traffic import Group
from megaokd.precision import Precision


@dataclass(frozen=True)
class Shape:
    """A micro-batch, and how a rank holds a model's layers."""

    rows: int
    width: int
    tensor: int
    sequence_parallel: bool
    precision: Precision
    stored: int
    """Bytes of a number of the base weights."""
    packed: bool = False
    row_groups: int = 1
    """Groups of ranks that the micro-batch's rows are shared among; `rows` are those of one."""

    @property
    def group(self) -> Group:
        """The ranks that share the layers."""
        return "tensor" if self.row_groups == 1 else "trunk"

    @property
    def tokens(self) -> int:
        """T."""
        return self.rows * self.width

    @property
    def outside(self) -> int:
        """To."""
        return self.tokens // self.tensor if self.sequence_parallel and self.tensor > 1 else self.tokens

    @property
    def places(self) -> int:
        """Rows of the tables of rotations: one a position, and of packed rows one a token."""
        return self.tokens if self.packed else self.width

    @property
    def product(self) -> int:
        """Bytes of a number that comes out of a matrix product."""
        return 2 if self.precision == "bf16" else 4


@dataclass(frozen=True)
class LayerKind:
    """How autograd meets a layer."""

    needs: bool = False
    """The gradient of its input is wanted."""
    trains: bool = False
    """Its own weights are trained."""
    online: OnlineModules | None = None

    @property
    def moves(self) -> bool:
        """Whether anything is recorded for it at all."""
        return self.needs or self.trains or self.online is not None
