"""The watchers that a configuration asks for."""

from pathlib import Path

from megaokd.callbacks.base import Callback
from megaokd.callbacks.checks import build_checks
from megaokd.callbacks.fan_out import FanOut
from megaokd.callbacks.journal import read_journal
from megaokd.callbacks.logs import JsonLog
from megaokd.callbacks.monitors import Monitors
from megaokd.callbacks.progress import MessageLines, ProgressBar, WarningLines
from megaokd.callbacks.summary import SummaryPage
from megaokd.callbacks.tensorboard import TensorBoard
from megaokd.callbacks.warnings import WarningGiver
from megaokd.config import Config
from megaokd.config_file import to_dict
from megaokd.engine.monitors import start_monitors
from megaokd.mesh import ParallelMesh


def build_callbacks(config: Config, mesh: ParallelMesh, first_step: int) -> Callback:
    """Those of rank 0; none on other ranks."""
    if not mesh.is_main:
        return Callback()
    folder = Path(config.checkpoint.folder)
    callbacks: list[Callback] = [JsonLog(folder, config.logging.every), SummaryPage(folder, config)]
    if config.logging.tensorboard:
        callbacks.append(TensorBoard(folder, config.logging.every, first_step=first_step, config=to_dict(config)))
    write = start_monitors(config.deepspeed)
    if write is not None:
        callbacks.append(Monitors(write, config.logging.every))
    callbacks.append(ProgressBar(config.train.steps, first_step) if config.logging.progress else MessageLines())
    callbacks.append(WarningLines())
    past = read_journal(folder, last_step=first_step) if first_step else []
    options = config.logging.warnings
    giver = WarningGiver(build_checks(config), FanOut(callbacks), repeat_after=options.repeat_after, past=past)
    return FanOut([*callbacks, giver])
