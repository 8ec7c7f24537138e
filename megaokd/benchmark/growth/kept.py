"""What a rank keeps for backward, counted while both models run: autograd's own hooks see every tensor."""

import torch
from torch.autograd.graph import saved_tensors_hooks

from megaokd.data.batch import Batch
from megaokd.models.decoder import Decoder
from megaokd.precision import Precision, autocast
from megaokd.run import Run

Storages = dict[int, torch.UntypedStorage]
"""By address; while they are held, no address is used again."""


def kept_bytes(run: Run, batch: Batch) -> dict[str, int]:
    """Bytes that both models of this rank's stages keep for backward, of the batch's first micro-batch.

    Weights are not counted, and a storage that several operations keep counts once. Collective: both forward passes.
    """
    sums = {"student": 0, "teacher": 0}
    for position, stage in enumerate(run.models.stages):
        index = run.mesh.pipeline.rank + position * run.mesh.pipeline.size
        for name, model, slot in (("student", stage.student, 0), ("teacher", stage.teacher, 1)):
            if model is not None:
                grad = index > 0 and index > run.models.slots[slot].grad_from_stage
                sums[name] += _kept_by(model, batch, index, stage.precision, run.mesh.device, grad=grad)
    return sums


def _kept_by(
    model: Decoder, batch: Batch, stage: int, precision: Precision, device: torch.device, *, grad: bool
) -> int:
    tokens = inputs = batch.tokens[0].clone().to(device)  # without the other micro-batches' storage
    places = batch.positions[0].clone().to(device) if batch.positions is not None else None
    if stage:
        examples, sequence = tokens.shape
        rows = examples // model.rows.size if model.rows is not None else examples
        positions = sequence // model.tp.sequence_parts
        inputs = torch.zeros(rows, positions, model.arch.hidden_size, device=device, requires_grad=grad)
    storages: Storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages.update(storages_of(tensor))
        return tensor.detach()  # with its history, an operation that keeps its own result would never be freed

    with saved_tensors_hooks(keep, lambda tensor: tensor), autocast(precision, device):
        model(inputs, places)
    weights = storages_of(*model.parameters())
    return total_bytes({address: storage for address, storage in storages.items() if address not in weights})


def storages_of(*tensors: torch.Tensor) -> Storages:
    """Those that hold something."""
    found = (tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta")
    return {storage.data_ptr(): storage for storage in found if storage.nbytes()}


def total_bytes(storages: Storages) -> int:
    """Of all of them."""
    return sum(storage.nbytes() for storage in storages.values())
