"""The teacher's trunk: embedding and layers below the first online module, a constant function of the tokens."""

from collections.abc import Sequence

from megaokd.config import Config
from megaokd.distill.online_modules import first_online_layer
from megaokd.errors import UserError
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import DecoderSlice
from megaokd.models.rotary import LongRopeScaling


def trunk_layers(config: Config, teacher: DecoderArchitecture) -> int:
    """How many layers the trunk has: those below the first module; without modules all, but not the final norm."""
    online = config.teacher.online
    return teacher.num_layers if online is None else first_online_layer(online, teacher.num_layers)


def check_cache(config: Config, teacher: DecoderArchitecture | None) -> None:
    """Refuse a trunk cache where there is no trunk, or where it depends on more than an example's own tokens."""
    if config.teacher.cache is None:
        return
    if teacher is None:
        raise UserError("teacher.cache keeps the output of a teacher's layers, but teacher.path names no teacher")
    if trunk_layers(config, teacher) == 0:
        raise UserError(
            "teacher.cache has nothing to keep: every layer of the teacher carries online modules; lower "
            "teacher.online.layers or remove teacher.cache"
        )
    width = config.data.widest_batch
    scaling = teacher.rotary.scaling if teacher.rotary is not None else None
    if isinstance(scaling, LongRopeScaling) and width > scaling.original_positions:
        raise UserError(
            f"teacher.cache does not fit batches of up to {width} positions: the teacher's LongRoPE changes beyond "
            f"{scaling.original_positions} of them, so what an example gives depends on the batch that it is in; lower "
            "data.sequence_length or remove teacher.cache"
        )


def stage_above(slices: Sequence[DecoderSlice], trunk: int) -> int:
    """The stage on which what follows `trunk` layers begins."""
    return next(index for index, part in enumerate(slices) if part.last or part.layers.stop > trunk)


def above_trunk(part: DecoderSlice, trunk: int) -> DecoderSlice:
    """What is left of a slice without the first `trunk` layers and the embedding."""
    return DecoderSlice(range(max(part.layers.start, trunk), max(part.layers.stop, trunk)), False, part.last)


def within_trunk(part: DecoderSlice, trunk: int) -> DecoderSlice:
    """What a slice has of the embedding and the first `trunk` layers."""
    return DecoderSlice(range(min(part.layers.start, trunk), min(part.layers.stop, trunk)), part.first, False)
