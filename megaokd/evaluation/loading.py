"""Loading the models that are evaluated, checked against the vocabulary of the data."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from megaokd.data.tokenizer import first_difference, load_tokenizer, vocabulary_size
from megaokd.errors import UserError
from megaokd.evaluation.adapter import FolderAdapter
from megaokd.evaluation.checkpoint_student import is_checkpoint, load_student, student_architecture
from megaokd.evaluation.ranks import Ranks
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.huggingface_weights import load_decoder
from megaokd.models.initialize import freeze
from megaokd.parallel.vocab import VocabRange


class ModelLoader:
    """Loads models for data made with one tokenizer: fp32, frozen, split alike over the tensor-parallel ranks.

    folders: of every model that will be asked for; the vocabulary's split depends on the one with most rows.

    Raises:
        UserError: no such model or one that is not supported, a layout that does not suit it, or a vocabulary that is
            not the tokenizer's.
    """

    def __init__(self, folders: Sequence[str | Path], tokenizer: PreTrainedTokenizerBase, ranks: Ranks) -> None:
        self.ranks = ranks
        self.architectures = {str(folder): _architecture(Path(folder), tokenizer, ranks) for folder in folders}
        padded = max(arch.vocab_size for arch in self.architectures.values())
        self.vocab = VocabRange.split(vocabulary_size(tokenizer), padded, ranks.tp)

    @property
    def positions(self) -> int:
        """How many positions all of the models have."""
        return min(arch.max_positions for arch in self.architectures.values())

    def load(self, folder: str | Path) -> Decoder:
        """The model in `folder`, or the student of a checkpoint; a `UserError` where its files are damaged."""
        arch = self.architectures[str(folder)]
        with torch.device(self.ranks.device):
            decoder = Decoder(arch, DecoderSlice(range(arch.num_layers)), self.vocab, self.ranks.tp)
        if is_checkpoint(folder):
            load_student(decoder, Path(folder))
        else:
            load_decoder(decoder, folder)
        freeze(decoder.parameters())
        return decoder.eval()

    def load_adapted(self, teacher: str | Path, adapter: str | Path) -> Decoder:
        """The model in `teacher` with the PEFT adapter in `adapter` merged; a `UserError` where that does not fit."""
        decoder = self.load(teacher)
        FolderAdapter.read(Path(adapter)).merge_into(decoder)
        return decoder


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter and not a model."""
    return (Path(folder) / "adapter_config.json").is_file()


def check_is_whole(folder: str | Path) -> None:
    """Refuse an adapter where a whole model is asked for."""
    if is_adapter(folder):
        raise UserError(
            f"{folder} is an adapter and no whole model; `megaokd evaluate --adapted-teacher` takes it beside "
            "--teacher, and `megaokd export --what merged-teacher` writes the model that both make"
        )


def _architecture(folder: Path, tokenizer: PreTrainedTokenizerBase, ranks: Ranks) -> DecoderArchitecture:
    check_is_whole(folder)
    if is_checkpoint(folder):
        arch = student_architecture(folder, vocabulary_size(tokenizer))
    elif (folder / "config.json").is_file():
        arch = read_architecture(str(folder))
        _check_vocabulary(folder, arch.vocab_size, tokenizer)
    else:
        raise UserError(
            f"{folder}: neither a Hugging Face model folder (config.json is missing) nor a checkpoint "
            "(RUN/checkpoints/step-N)"
        )
    arch.check_layout(str(folder), tensor=ranks.tp.size, stages=1)
    return arch


def _check_vocabulary(folder: Path, rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model whose token ids mean something else than the data's.

    A model may have more rows than its tokenizer has tokens (padding). One that comes without a tokenizer can only be
    compared by its size, which then has to be exact.
    """
    expected = vocabulary_size(tokenizer)
    if (folder / "tokenizer_config.json").is_file():
        difference = first_difference(load_tokenizer(folder), tokenizer)
        if difference is not None:
            raise UserError(
                f"{folder}: its vocabulary is not that of the data set ({difference}); preprocess the data with this "
                "model's tokenizer, or evaluate a model that shares the data's"
            )
    elif rows != expected:
        raise UserError(
            f"{folder}: its vocabulary has {rows} tokens, that of the data set {expected}, and the folder has no "
            "tokenizer that could explain the difference; use a model whose tokenizer made the data"
        )
    if rows < expected:
        raise UserError(f"{folder}: {rows} vocabulary rows are too few for a tokenizer of {expected} tokens")
