"""Reads model folders in one layout after another, and writes what came of them: logits, gradients, an export.

Usage: torchrun --nproc-per-node=2 ... family_worker.py FOLDER, with FOLDER/NAME/model for each model.
Written: FOLDER/NAME/LAYOUT/{logits.safetensors, gradients/, export/}, without a pipeline generations.json and, of a
teacher with modules, {adapted.safetensors, adapter/, merged/}; of a model in bf16 only the exported weights.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megaokd.config import OnlineModules, Parallel
from megaokd.distill.objective import HiddenStateLoss, Terms
from megaokd.distill.online_modules import attach_online_modules
from megaokd.engine.gradients import sum_partial_gradients, sum_tied_gradients
from megaokd.engine.parameters import parameters_of
from megaokd.export import copy_model_files
from megaokd.export_teacher import export_adapter, export_merged_teacher
from megaokd.generation.generate import generate
from megaokd.kernels import Term
from megaokd.mesh import ParallelMesh, build_mesh, start_distributed
from megaokd.models.decoder import Decoder
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.huggingface_weights import export_weights, gather_whole, load_decoder
from megaokd.models.initialize import fill_slice
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


def build(model: Path, parallel: Parallel, mesh: ParallelMesh) -> tuple[Decoder, VocabRange, TensorParallel]:
    arch = read_architecture(model)
    tp = TensorParallel.on(mesh.tensor, sequence_parallel=parallel.sequence_parallel)
    vocab = VocabRange.split(arch.vocab_size, arch.vocab_size + 5, tp)
    return Decoder(arch, split_model(arch, parallel.pipeline)[mesh.pipeline.rank], vocab, tp), vocab, tp


def run(model: Path, output: Path, parallel: Parallel, mesh: ParallelMesh) -> None:
    decoder, vocab, tp = build(model, parallel, mesh)
    stored = json.loads((model / "config.json").read_text())["dtype"]
    decoder.to(getattr(torch, stored))
    load_decoder(decoder, model)
    export_weights([decoder], output / "export", mesh)
    if stored != "float32":
        return
    if mesh.is_main:
        copy_model_files(model, output / "export")

    write_logits(decoder, output / "logits.safetensors", parallel, tp, mesh)
    if parallel.pipeline == 1:
        write_generations(decoder, output / "generations.json")
    if model.parent.name in families.ADAPTED:
        adapt(model, output, parallel, mesh)

    ends = (decoder,) if decoder.part.last else ()
    loss = HiddenStateLoss(ends, TERMS, vocab, tp, "fp32", has_teacher=False, fused=True)
    stages, slots = as_stage(decoder)
    tokens, labels = micro_batches()
    runner = build_runner(stages, slots, loss, parallel, mesh.pipeline, mesh.device)
    runner.forward_backward(tokens, labels, scale=1.0 / int((labels != -100).sum()))
    write_gradients(decoder, output / "gradients", tp, mesh)


def micro_batches() -> tuple[torch.Tensor, torch.Tensor]:
    """Two micro-batches of one example, and their labels."""
    tokens = families.batch().unsqueeze(1)
    return tokens, torch.nn.functional.pad(tokens[..., 1:], (0, 1), value=-100)


def as_stage(decoder: Decoder) -> tuple[list[DistillationStage], tuple[Slot, ...]]:
    slot = Slot(decoder.arch.hidden_size, grad_from_stage=0, sequence_parts=decoder.tp.sequence_parts)
    return [DistillationStage(decoder, None, "fp32")], (slot,)


def write_logits(decoder: Decoder, path: Path, parallel: Parallel, tp: TensorParallel, mesh: ParallelMesh) -> None:
    recorder = Recorder(decoder, tp, mesh)
    runner = build_runner(*as_stage(decoder), recorder, parallel, mesh.pipeline, mesh.device)
    runner.forward(*micro_batches())
    if recorder.logits and mesh.tensor.rank == 0:
        save_file({"logits": torch.cat(recorder.logits)}, path)


def write_generations(decoder: Decoder, path: Path) -> None:
    """What every rank has generated, by the name of the options."""
    for name, options in families.GENERATIONS.items():
        own = generate(decoder, families.batch()[:, :20].tolist(), options, eos_id=2)
        ranks: list[list[list[int]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(ranks, own)
        path.with_stem(f"{path.stem}-{name}").write_text(json.dumps(ranks))


def adapt(model: Path, output: Path, parallel: Parallel, mesh: ParallelMesh) -> None:
    """Logits of the model with random modules on its last two layers, and what is exported of it."""
    decoder, _, tp = build(model, parallel, mesh)
    load_decoder(decoder, model)
    attach_online_modules(decoder, OnlineModules(rank=3, alpha=4.5, layers=2), seed=1)
    for name, parameter, layout in decoder.named_layouts():
        if name.endswith("lora_B"):
            fill_slice(parameter, layout, name, 1, lambda whole, g: whole.normal_(0.0, 0.2, generator=g))
    write_logits(decoder, output / "adapted.safetensors", parallel, tp, mesh)
    export_adapter([decoder], str(model), output / "adapter", mesh)
    export_merged_teacher([decoder], str(model), output / "merged", mesh, dtype="float32")


def write_gradients(decoder: Decoder, folder: Path, tp: TensorParallel, mesh: ParallelMesh) -> None:
    """In the form of the family's files: the gradients take the weights' place and are exported."""
    parameters = parameters_of(decoder, "student")
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
