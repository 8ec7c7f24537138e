"""Which checkpoint a run continues from, the newest that is what was written; or one that a user names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megaokd.agreement import from_main
from megaokd.checkpoint.contents import Contents, DamagedError, check_files, read_contents
from megaokd.checkpoint.state import DAMAGED, list_checkpoints, step_of
from megaokd.errors import UserError


@dataclass(frozen=True)
class Choice:
    """A checkpoint that was found whole, and in words the newer ones that were not."""

    path: Path
    contents: Contents
    skipped: list[str]


def choose_checkpoint(folder: Path, group: dist.ProcessGroup | None = None) -> Choice | None:
    """The newest checkpoint whose files are what was written; None where there is no checkpoint. Collective.

    Every file is read once, the ranks sharing the work. Newer ones that are damaged are set aside (renamed), so that
    they do not count as checkpoints that are kept.

    group: of all ranks; one that may wait long, since every file is read.

    Raises:
        UserError: there are checkpoints, but none is whole; or one was written in another format.
    """
    # As rank 0 sees them: on a shared file system others may lag.
    candidates = from_main(lambda: list_checkpoints(folder))
    skipped: dict[Path, str] = {}
    for path in reversed(candidates):
        contents, damage = _inspect(path, group)
        if contents is None:
            skipped[path] = damage
            continue
        from_main(lambda: [old.replace(old.with_suffix(DAMAGED)) for old in skipped])
        return Choice(
            path,
            contents,
            [
                f"{old} is damaged: {reason}; set aside as {old.with_suffix(DAMAGED).name}, continuing from {path.name}"
                for old, reason in skipped.items()
            ],
        )
    if skipped:
        newest, reason = next(iter(skipped.items()))
        raise UserError(
            f"none of the {len(skipped)} checkpoints in {folder / 'checkpoints'} is whole; the newest, {newest.name}: "
            f"{reason}. Restore one from a copy, or start in another checkpoint.folder"
        )
    return None


def find_checkpoint(folder: Path, which: str, group: dist.ProcessGroup | None = None) -> Choice:
    """The checkpoint called `which`: "last", "best" or a step. Collective over `group`, as above. Nothing is set aside.

    Raises:
        UserError: there is none of that name, or it is damaged.
    """
    known = {step_of(path): path for path in from_main(lambda: list_checkpoints(folder))}
    if not known:
        raise UserError(f"{folder / 'checkpoints'} holds no checkpoint")
    newest = known[max(known)]
    if which == "best":
        best = _whole(newest, group).contents.state.best
        if not best:
            raise UserError(f"{newest}: the run has not been validated, so no checkpoint is the best; give a step")
        which = str(best["step"])
    path = newest if which == "last" else known.get(int(which))
    if path is None:
        raise UserError(f"{folder / 'checkpoints'} holds no step {which}; there are {sorted(known)}")
    return _whole(path, group)


def _whole(path: Path, group: dist.ProcessGroup | None) -> Choice:
    contents, damage = _inspect(path, group)
    if contents is None:
        raise UserError(f"{path} is damaged: {damage}")
    return Choice(path, contents, [])


def _inspect(path: Path, group: dist.ProcessGroup | None) -> tuple[Contents | None, str]:
    """(contents, "") of a whole checkpoint, (None, what is wrong) of a damaged one; the same on every rank."""
    try:
        contents = from_main(lambda: read_contents(path))
    except DamagedError as error:
        return None, str(error)
    names = sorted(contents.files)[dist.get_rank() :: dist.get_world_size()]
    own = ""
    try:
        check_files(path, contents.files, names)
    except DamagedError as error:
        own = str(error)
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own, group=group)
    damage = "; ".join(text for text in found if text)
    return (None, damage) if damage else (contents, "")
