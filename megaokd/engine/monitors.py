"""DeepSpeed's monitors (wandb, comet, csv): switched on in the `deepspeed` section, fed by the run's log.

DeepSpeed itself would write its learning rate at every step, counted in samples; its own writing is switched off, so
that every number has the step that the other logs give it.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megaokd.errors import UserError

Event = tuple[str, float, int]
"""Name, value, step."""
_PACKAGES = {"wandb": "wandb", "comet": "comet_ml", "tensorboard": "tensorboard", "csv_monitor": "csv"}


def check_monitors(options: Mapping[str, Any]) -> None:
    """Refuse a monitor whose package is not there.

    Raises:
        UserError: the same on every rank whose machine lacks it.
    """
    for name in _enabled(options):
        package = _PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"deepspeed.{name} is enabled, but the package {package} is not installed: pip install {package}, or "
                f"leave deepspeed.{name} out"
            )


def without_monitors(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with every monitor's section still there to be checked by DeepSpeed, and switched off."""
    return {**options, **{name: {**options[name], "enabled": False} for name in _enabled(options)}}


def start_monitors(options: Mapping[str, Any]) -> Callable[[Sequence[Event]], None] | None:
    """What writes events to all monitors that are enabled; None where none is. On rank 0, with DeepSpeed started."""
    if not _enabled(options):
        return None
    from deepspeed.monitor.config import get_monitor_config  # type: ignore[import-untyped, unused-ignore]
    from deepspeed.monitor.monitor import MonitorMaster  # type: ignore[import-untyped, unused-ignore]

    write: Callable[[Sequence[Event]], None] = MonitorMaster(get_monitor_config(dict(options))).write_events
    return write


def _enabled(options: Mapping[str, Any]) -> list[str]:
    sections = {name: options.get(name) for name in _PACKAGES}
    return [name for name, section in sections.items() if isinstance(section, Mapping) and section.get("enabled")]
