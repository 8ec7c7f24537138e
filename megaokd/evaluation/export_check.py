"""Is the exported folder the model that was trained? Its logits through `transformers` against those of the trainer.

At the end of a run with `checkpoint.export` the trainer leaves `export_check.safetensors` beside the exported folder:
`tokens` int64 [B, S] and `logits` fp32 [B, S, V], of a row of some 64 tokens or a few such rows, computed by the
parallel model on the ranks that trained it.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megaokd.checkpoint.state import EXPORT_CHECK_FILE, STUDENT_FOLDER
from megaokd.errors import UserError

TOLERANCE = 1e-4


@torch.inference_mode()
def check_export(checkpoint_folder: str | Path, tolerance: float = TOLERANCE) -> float:
    """The largest difference of the two models' logits, relative to the largest logit.

    Raises:
        UserError: nothing to compare, other shapes, or a difference above `tolerance`.
    """
    folder = Path(checkpoint_folder)
    try:
        expected = load_file(folder / EXPORT_CHECK_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / EXPORT_CHECK_FILE}: cannot be read ({error}); the run writes it at its end"
        ) from None
    model = AutoModelForCausalLM.from_pretrained(
        str(folder / STUDENT_FOLDER), dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    logits = model.eval()(expected["tokens"]).logits
    if logits.shape != expected["logits"].shape:
        raise UserError(
            f"{folder / STUDENT_FOLDER}: the exported model gives logits {list(logits.shape)}, the trained one "
            f"{list(expected['logits'].shape)}"
        )
    difference = ((logits - expected["logits"]).abs().max() / expected["logits"].abs().max()).item()
    if not difference <= tolerance:  # a NaN is refused too
        raise UserError(
            f"{folder / STUDENT_FOLDER}: the exported model is not the trained one: its logits differ by "
            f"{difference:.1e} of the largest (allowed: {tolerance:.0e})"
        )
    return difference
