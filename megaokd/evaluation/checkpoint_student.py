"""The student of a training checkpoint, read as it lies there: files of any layout, no export in between.

RUN/resolved_config.yaml                  which student it is
RUN/checkpoints/step-00000200/            what is named
"""

import json
from dataclasses import asdict
from pathlib import Path

from megaokd.callbacks.summary import CONFIG_FILE
from megaokd.checkpoint.choice import find_checkpoint
from megaokd.checkpoint.contents import STATE_FILE
from megaokd.checkpoint.state import step_of
from megaokd.checkpoint.tensors import load_weights
from megaokd.config_file import load_config
from megaokd.errors import UserError
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder
from megaokd.pipeline.blueprint import read_architectures


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder is a checkpoint of a run and not a model."""
    return (Path(folder) / STATE_FILE).is_file()


def student_architecture(checkpoint: Path, vocab_size: int) -> DecoderArchitecture:
    """The student's shape, by its run's configuration; vocab_size: of the data. Collective: the ranks read all files.

    Raises:
        UserError: the checkpoint is damaged, not in a run's folder, or not of the student that is configured there.
    """
    path = checkpoint.resolve()
    run = path.parent.parent
    contents = find_checkpoint(run, str(step_of(path))).contents
    if not (run / CONFIG_FILE).is_file():
        raise UserError(f"{checkpoint}: {run / CONFIG_FILE} is missing, which says what student this is")
    arch, _ = read_architectures(load_config(run / CONFIG_FILE), vocab_size)
    present = json.loads(json.dumps(asdict(arch)))
    if any(present.get(name) != value for name, value in contents.state.models["student"].items()):
        raise UserError(
            f"{checkpoint}: its student is not the one that {run / CONFIG_FILE} makes for a vocabulary of {vocab_size} "
            "tokens; give data of the run's tokenizer"
        )
    return arch


def load_student(decoder: Decoder, checkpoint: Path) -> None:
    """Fill a decoder of `student_architecture`, in the layout that it has. Collective over the world."""
    load_weights(checkpoint.resolve(), "student", decoder)
