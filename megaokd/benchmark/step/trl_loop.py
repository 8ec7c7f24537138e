"""A step of TRL's GKD trainer in its off-policy mode (lmbda=0, beta=0: forward KL), by the trainer's own parts.

Its trainer makes the loss and the backward pass, its optimizer the update; only the loop around them, with its
callbacks and logs, is left out.
"""

import importlib
from typing import Any

import torch
from torch import nn

from megaokd.benchmark.step.ours import LEARNING_RATE
from megaokd.benchmark.step.user_loop import read_batches, read_model
from megaokd.benchmark.step.world import World
from megaokd.config import OptimizerGroup
from megaokd.data.batch import IGNORE
from megaokd.data.tokenizer import load_tokenizer


class TrlLoop:
    """One step of plain distillation."""

    def __init__(self, world: World) -> None:
        gkd = importlib.import_module("trl.experimental.gkd")
        datasets = importlib.import_module("datasets")
        self._batches = read_batches(world)
        options = OptimizerGroup()
        arguments = gkd.GKDConfig(
            output_dir=str(world.root / "trl"),
            lmbda=0.0,
            beta=0.0,
            learning_rate=LEARNING_RATE,
            adam_beta1=options.betas[0],
            adam_beta2=options.betas[1],
            weight_decay=options.weight_decay,
            per_device_train_batch_size=world.pair.micro_batch,
            gradient_checkpointing=False,
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
        )
        self._trainer: Any = gkd.GKDTrainer(
            model=read_model(world.student),
            teacher_model=read_model(world.teacher),
            args=arguments,
            processing_class=load_tokenizer(world.teacher),
            train_dataset=datasets.Dataset.from_list([{"messages": []}]),
        )
        self._model: nn.Module = self._trainer.model
        self._model.train()
        self._optimizer = self._trainer.create_optimizer()
        self._clip = options.clip

    def __call__(self, step: int) -> dict[str, float]:
        """The divergence under our name."""
        batch = self._batches.batch(step)
        total = 0.0
        for tokens, labels in zip(batch.tokens, batch.labels, strict=True):
            # It wants whole sequences, the last token too, and shifts labels itself.
            whole = torch.cat([tokens, labels[:, -1:]], dim=1)
            unshifted = torch.cat([torch.full_like(labels[:, :1], IGNORE), labels], dim=1)
            inputs = {"input_ids": whole, "attention_mask": torch.ones_like(whole), "labels": unshifted}
            loss = self._trainer.training_step(self._model, inputs, num_items_in_batch=batch.loss_tokens)
            total += float(loss)
        nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {"forward_kl": total}
