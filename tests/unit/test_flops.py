"""FLOP counts of a step against torch's own counter, product by product, on the stage and the loss of the loop."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from megaokd.config import Architecture, Objective, OnlineModules
from megaokd.cost.flops import StepMethod, StepTokens, count_step
from megaokd.data.batch import IGNORE
from megaokd.distill.objective import HiddenStateLoss, Terms
from megaokd.distill.online_modules import attach_online_modules
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.initialize import freeze, initialize_decoder
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange
from megaokd.pipeline.schedule import MicroBatchLoop
from megaokd.pipeline.stage import DistillationStage
from megaokd.pipeline.trunk import above_trunk

MICRO_BATCHES, ROWS, WIDTH, VOCABULARY, PADDED = 2, 3, 12, 47, 53

# What the counter of torch 2.13 does not know: attention on a CPU, and a product that is added in place.
MISSING = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
    torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1],
}


def architecture(options: dict[str, Any], **changes: Any) -> DecoderArchitecture:
    return replace(DecoderArchitecture.from_config(Architecture(**options), VOCABULARY), **changes)


STUDENT = architecture({"hidden_size": 8, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1, "attention_bias": True})
TEACHER = architecture(
    {"hidden_size": 24, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 10, "tied_head": False},
    vocab_size=PADDED,
)
GEMMA = replace(TEACHER, output_norms=True, qk_norm=True, windows=(5, 5, 5, None))
NEOX = replace(TEACHER, parallel_residual=True, gated_mlp=False, norm="layer", mlp_bias=True, output_bias=True)


def lora(**options: Any) -> OnlineModules:
    return OnlineModules(kind="lora", rank=5, **options)


BOTTLENECKS = OnlineModules(kind="bottleneck", rank=5, layers=2)
ARCHITECTURES = {"llama": TEACHER, "gemma": GEMMA, "neox": NEOX}
MODULES: dict[str, OnlineModules | None] = {
    "frozen": None,
    "lora": lora(layers=2),
    "lora-everywhere": lora(layers=4),
    "lora-values": lora(layers=1, targets=("v_proj",)),
    "lora-output": lora(layers=2, targets=("o_proj",)),
    "lora-down": lora(layers=2, targets=("down_proj",)),
    "bottleneck": BOTTLENECKS,
    "head": OnlineModules(kind="head", rank=5),
}
METHODS = {
    f"{arch}-{name}{'-recompute' * recompute}": (arch, StepMethod(online, recompute=recompute))
    for arch in ARCHITECTURES
    for name, online in MODULES.items()
    for recompute in (False, True)
}
for _name in ("frozen", "lora", "bottleneck", "head"):
    METHODS[f"{_name}-cached"] = ("llama", StepMethod(MODULES[_name], cached=True))
for _name in ("lora", "bottleneck", "head"):
    METHODS[f"{_name}-anchor"] = ("llama", StepMethod(MODULES[_name], anchor=True))
METHODS["all-at-once"] = ("llama", StepMethod(MODULES["lora"], cached=True, recompute=True, anchor=True))


def build(arch: DecoderArchitecture, part: DecoderSlice, vocab: VocabRange, recompute: bool) -> Decoder:
    decoder = Decoder(arch, part, vocab, TensorParallel(), recompute=recompute)
    initialize_decoder(decoder, seed=0)
    return decoder


def counted(student: DecoderArchitecture, teacher: DecoderArchitecture | None, method: StepMethod) -> tuple[int, int]:
    """FLOPs that torch counts in forward and backward of all micro-batches, and the number of loss tokens."""
    vocab = VocabRange.split(VOCABULARY, PADDED if teacher else VOCABULARY, TensorParallel())
    slots = [build(student, DecoderSlice(range(student.num_layers)), vocab, method.recompute)]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (MICRO_BATCHES, ROWS, WIDTH), generator=generator)
    labels = torch.where(torch.rand(tokens.shape, generator=generator) < 0.6, tokens, IGNORE)
    extras = {}
    first = None
    if teacher is not None:
        whole = DecoderSlice(range(teacher.num_layers))
        first = teacher.num_layers
        if method.online is not None and method.online.kind != "head":
            first -= method.online.layers or 1
        part = above_trunk(whole, first) if method.cached else whole
        slots.append(build(teacher, part, vocab, method.recompute))
        freeze(slots[1].parameters())
        if method.online is not None:
            attach_online_modules(slots[1], method.online, seed=1)
        if method.cached:
            extras["trunk"] = torch.randn(MICRO_BATCHES, ROWS, WIDTH, teacher.hidden_size)
    stage = DistillationStage(
        slots[0],
        slots[1] if teacher else None,
        "fp32",
        takes_trunk=method.cached,
        anchored_from=first if method.anchor else None,
    )
    objective = Objective(teacher={"ce": 1.0, "forward_kl": 0.1, **({"anchor": 0.5} if method.anchor else {})})
    terms = Terms.from_config(objective, has_teacher=teacher is not None, online=method.online is not None)
    heads = (*slots, slots[1]) if method.anchor else tuple(slots)
    loss = HiddenStateLoss(
        heads, terms, vocab, TensorParallel(), "fp32", has_teacher=teacher is not None, fused=True, backend="eager"
    )
    runner = MicroBatchLoop(stage, loss)
    with FlopCounterMode(display=False, custom_mapping=MISSING) as counter:
        runner.forward_backward(tokens, labels, extras, scale=1.0)
    return counter.get_total_flops(), int((labels != IGNORE).sum())


@pytest.mark.parametrize(("teacher", "method"), METHODS.values(), ids=METHODS)
def test_a_step_of_distillation(teacher: str, method: StepMethod) -> None:
    expected, loss_tokens = counted(STUDENT, ARCHITECTURES[teacher], method)
    tokens = StepTokens(MICRO_BATCHES * ROWS, WIDTH, loss_tokens)
    assert count_step(STUDENT, ARCHITECTURES[teacher], tokens, method).total == expected


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_of_supervised_training(recompute: bool) -> None:
    method = StepMethod(recompute=recompute)
    expected, loss_tokens = counted(STUDENT, None, method)
    flops = count_step(STUDENT, None, StepTokens(MICRO_BATCHES * ROWS, WIDTH, loss_tokens), method)
    assert flops.total == expected
    assert (flops.model_flops < flops.total) == recompute
    assert flops.teacher.total == flops.teacher_head.total == 0
