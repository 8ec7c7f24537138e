"""The same step as a user would write it: `transformers` models, LoRA by `peft`, dense losses, AdamW.

On the same batches, in the same micro-batches, with the same normalisation. Rows of loss tokens are taken before the
softmax, which is kinder than a mask over all positions.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaokd.benchmark.step.ours import LEARNING_RATE
from megaokd.benchmark.step.world import World
from megaokd.config import Data, Objective, OnlineGroup, OptimizerGroup
from megaokd.data.batch import IGNORE, BatchShape
from megaokd.data.batches import TrainBatches
from megaokd.data.mixture import open_training_data


def read_batches(world: World) -> TrainBatches:
    """The batches that our run sees."""
    pair = world.pair
    data = Data(train=world.data, sequence_length=pair.sequence)
    shape = BatchShape(
        sequence_length=pair.sequence,
        bucket=data.bucket,
        global_batch=pair.global_batch,
        micro_batch=pair.micro_batch,
    )
    return TrainBatches(open_training_data(data), shape, seed=0)


def read_model(folder: str) -> nn.Module:
    """A causal language model of transformers, fp32, with torch's fused attention."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return model


class UserLoop:
    """One step of plain distillation (online_layers=None) or of OKD with LoRA on the teacher's last layers."""

    def __init__(self, world: World, online_layers: int | None) -> None:
        self._batches = read_batches(world)
        self._student = read_model(world.student).train()
        teacher: Any = read_model(world.teacher).eval()
        teacher.requires_grad_(False)
        self._moves = online_layers is not None
        if online_layers is not None:
            teacher = _with_lora(teacher, world.pair.teacher.num_layers, online_layers)
        self._teacher = teacher
        self._groups = [
            (list(self._student.parameters()), OptimizerGroup()),
            ([p for p in teacher.parameters() if p.requires_grad], OnlineGroup()),
        ]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "betas": options.betas, "weight_decay": options.weight_decay}
                for parameters, options in self._groups
                if parameters
            ],
            lr=LEARNING_RATE,
        )

    def __call__(self, step: int) -> dict[str, float]:
        """Losses and gradient norms under our names."""
        batch = self._batches.batch(step)
        totals = {"student_loss": 0.0, "teacher_loss": 0.0, "forward_kl": 0.0}
        for tokens, labels in zip(batch.tokens, batch.labels, strict=True):
            losses = self._losses(tokens, labels)
            ((losses["student_loss"] + losses["teacher_loss"]) / batch.loss_tokens).backward()
            for name, value in losses.items():
                totals[name] += float(value.detach()) / batch.loss_tokens
        names = ("norm of student", "norm of online")
        for name, (parameters, options) in zip(names, self._groups, strict=True):
            if parameters:
                # The first step is for its values. torch sums squares in fp32, ours are fp64: over the millions of a
                # large head that differs by 1e-4.
                exact = gradient_norm(parameters) if step == 0 else None
                clipped = float(nn.utils.clip_grad_norm_(parameters, options.clip))
                totals[name] = clipped if exact is None else exact
        self._optimizer.step()
        self._optimizer.zero_grad()
        return totals

    def _losses(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        keep = labels != IGNORE
        with torch.set_grad_enabled(self._moves):
            teacher = self._teacher(input_ids=tokens, use_cache=False).logits[keep]
        student = self._student(input_ids=tokens, use_cache=False).logits[keep]
        log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
        weights = Objective()
        forward_kl = F.kl_div(log_q, log_p.detach(), reduction="sum", log_target=True)
        student_loss = weights.student["ce"] * F.nll_loss(log_q, labels[keep], reduction="sum")
        student_loss = student_loss + weights.student["forward_kl"] * forward_kl
        teacher_loss = torch.zeros(())
        if self._moves:
            moving_kl = F.kl_div(log_q.detach(), log_p, reduction="sum", log_target=True)
            teacher_loss = weights.teacher["ce"] * F.nll_loss(log_p, labels[keep], reduction="sum")
            teacher_loss = teacher_loss + weights.teacher["forward_kl"] * moving_kl
        return {"student_loss": student_loss, "teacher_loss": teacher_loss, "forward_kl": forward_kl}


def gradient_norm(parameters: Sequence[nn.Parameter]) -> float:
    """Of all of them, summed in fp64."""
    squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
    return math.sqrt(float(sum(squares)))


def _with_lora(teacher: Any, num_layers: int, online_layers: int) -> nn.Module:
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(num_layers - online_layers, num_layers)),
    )
    result: nn.Module = peft.get_peft_model(teacher, config)
    return result
