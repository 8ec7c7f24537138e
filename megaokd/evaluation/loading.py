"""Loading the models that are evaluated, checked against the vocabulary of the data."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from megaokd.data.tokenizer import first_difference, load_tokenizer, vocabulary_size
from megaokd.errors import UserError


def load_model(folder: str | Path, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> PreTrainedModel:
    """The causal language model in `folder`: fp32, eval mode, from safetensors, for data made with `tokenizer`.

    The folder's own generation settings (sampling, repetition penalty, ...) are dropped: every model generates alike.

    Raises:
        UserError: no such model, or its vocabulary is not the tokenizer's.
    """
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder}: no Hugging Face model folder (config.json is missing)")
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # transformers and safetensors raise whatever their parsers meet
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: the model cannot be loaded ({type(error).__name__}: {reason})") from error
    _check_vocabulary(Path(folder), model, tokenizer)
    model.generation_config = GenerationConfig()
    model.eval()
    model.to(device)  # type: ignore[arg-type]  # the annotation in transformers hides torch's own
    return model


def load_adapted(
    folder: str | Path, teacher_folder: str | Path | None, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> PreTrainedModel:
    """The moved teacher: a model folder, or the PEFT adapter in `folder` on top of the model in `teacher_folder`.

    Raises:
        UserError: as `load_model`; an adapter without its teacher, or without `peft`.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        return load_model(folder, tokenizer, device)
    if teacher_folder is None:
        raise UserError(f"{folder} is an adapter: give the original teacher with --teacher")
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError(f"{folder} is an adapter, which the package peft reads: pip install peft") from None
    try:
        adapted = PeftModel.from_pretrained(load_model(teacher_folder, tokenizer, device), str(folder))
    except UserError:
        raise
    except Exception as error:  # peft and safetensors raise whatever their parsers meet
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: does not fit {teacher_folder} ({type(error).__name__}: {reason})") from error
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged.eval()


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_vocabulary(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model whose token ids mean something else than the data's.

    A model may have more rows than its tokenizer has tokens (padding). One that comes without a tokenizer can only be
    compared by its size, which then has to be exact.
    """
    rows = model.get_output_embeddings().weight.shape[0]
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
