"""Reads model folders in one layout after another, and writes what came of them: logits, gradients, an export.

Usage: torchrun --nproc-per-node=2 ... family_worker.py FOLDER, with FOLDER/NAME/model for each model.
Written: FOLDER/NAME/LAYOUT/{logits.safetensors, gradients/, export/}; of a model in bf16 only the exported weights.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megaokd.config import Parallel
from megaokd.distill.objective import HiddenStateLoss, Terms
from megaokd.engine.gradients import sum_partial_gradients, sum_tied_gradients
from megaokd.engine.parameters import TrainableParameter
from megaokd.export import copy_model_files
from megaokd.kernels import Term
from megaokd.mesh import ParallelMesh, build_mesh, start_distributed
from megaokd.models.decoder import Decoder
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.huggingface_weights import export_weights, gather_whole, load_decoder
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange
from megaokd.pipeline.schedule import build_runner
from megaokd.pipeline.split import split_model
from megaokd.pipeline.stage import DistillationStage, Slot
from tests.support import families

LAYOUTS = {
    "tp2": Parallel(tensor=2),
    "tp2-sequence": Parallel(tensor=2, sequence_parallel=True),
    "pp2": Parallel(pipeline=2),
}
TERMS = Terms(student=(Term("ce", 1.0),), teacher=(), temperature=1.0)


def main() -> None:
    folder = Path(sys.argv[1])
    device = start_distributed(timeout_s=120)
    for layout, parallel in LAYOUTS.items():
        mesh = build_mesh(parallel, device)
        for model in sorted(folder.glob("*/model")):
            output = model.parent / layout
            for part in ("export", "gradients"):
                (output / part).mkdir(parents=True, exist_ok=True)
            run(model, output, parallel, mesh)
    dist.destroy_process_group()


def run(model: Path, output: Path, parallel: Parallel, mesh: ParallelMesh) -> None:
    arch = read_architecture(model)
    tp = TensorParallel.on(mesh.tensor, sequence_parallel=parallel.sequence_parallel)
    vocab = VocabRange.split(arch.vocab_size, arch.vocab_size + 5, tp)
    decoder = Decoder(arch, split_model(arch, parallel.pipeline)[mesh.pipeline.rank], vocab, tp)
    stored = json.loads((model / "config.json").read_text())["dtype"]
    decoder.to(getattr(torch, stored))
    load_decoder(decoder, model)
    export_weights([decoder], output / "export", mesh)
    if stored != "float32":
        return
    if mesh.is_main:
        copy_model_files(model, output / "export")

    stages, slots = [DistillationStage(decoder, None, "fp32")], (Slot(arch.hidden_size, grad_from_stage=0),)
    tokens = families.batch().unsqueeze(1)  # two micro-batches of one example
    labels = torch.nn.functional.pad(tokens[..., 1:], (0, 1), value=-100)
    recorder = Recorder(decoder, tp, mesh)
    build_runner(stages, slots, recorder, parallel, mesh.pipeline, tp, mesh.device).forward(tokens, labels)
    if recorder.logits and mesh.tensor.rank == 0:
        save_file({"logits": torch.cat(recorder.logits)}, output / "logits.safetensors")

    ends = (decoder,) if decoder.part.last else ()
    loss = HiddenStateLoss(ends, TERMS, vocab, tp, "fp32", has_teacher=False, fused=True)
    runner = build_runner(stages, slots, loss, parallel, mesh.pipeline, tp, mesh.device)
    runner.forward_backward(tokens, labels, scale=1.0 / int((labels != -100).sum()))
    write_gradients(decoder, output / "gradients", tp, mesh)


def write_gradients(decoder: Decoder, folder: Path, tp: TensorParallel, mesh: ParallelMesh) -> None:
    """In the form of the family's files: the gradients take the weights' place and are exported."""
    parameters = [
        TrainableParameter(
            name,
            parameter,
            layout,
            "student",
            tied=decoder.arch.tied_head and name in ("embed_tokens.weight", "head.weight"),
            tied_copy=name == "head.weight" and decoder.holds_tied_copy,
        )
        for name, parameter, layout in decoder.named_layouts()
    ]
    sum_partial_gradients(parameters, tp)
    sum_tied_gradients(parameters, mesh)
    for item in parameters:
        assert item.parameter.grad is not None, item.name
        item.parameter.data.copy_(item.parameter.grad)
    export_weights([decoder], folder, mesh)


class Recorder:
    """Stands in the loss function's place and keeps every micro-batch's logits, gathered over the vocabulary."""

    def __init__(self, decoder: Decoder, tp: TensorParallel, mesh: ParallelMesh) -> None:
        self.decoder = decoder
        self.tp = tp
        self.mesh = mesh
        self.logits: list[torch.Tensor] = []

    def __call__(self, hidden: tuple[torch.Tensor, ...], labels: torch.Tensor, *, scale: float) -> torch.Tensor:
        head = self.decoder.head
        assert head is not None
        local = head(self.tp.gather_sequence(hidden[0]))
        whole = gather_whole(local.movedim(-1, 0).contiguous(), head.layout, self.mesh)
        self.logits.append(whole.movedim(0, -1).contiguous())
        return hidden[0].new_zeros(())


if __name__ == "__main__":
    main()
