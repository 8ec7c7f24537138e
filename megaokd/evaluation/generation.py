"""Generations of a model, greedy or sampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from megaokd.evaluation.examples import left_padded


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn; without it the likeliest is taken."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    batch_size: int = 16,
) -> list[list[int]]:
    """Continue each prompt until `eos_id` (left out of the result) or `max_new_tokens`.

    Prompts are padded on the left and run in batches of `batch_size` with a key-value cache, longest first. Greedy
    generations do not depend on the batches; sampled ones are a function of the seed, the prompts and `batch_size`.
    """
    choice: dict[str, object] = {"do_sample": False}
    if sampling is not None:
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    generations: list[list[int]] = [[] for _ in prompts]
    with torch.random.fork_rng():
        torch.manual_seed(0 if sampling is None else sampling.seed)
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            input_ids, mask = left_padded([prompts[index] for index in indices], pad_id)
            output = model.generate(  # type: ignore[operator]  # seen through torch's Module.__getattr__
                input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                eos_token_id=eos_id,
                pad_token_id=pad_id,
                **choice,
            )
            for index, row in zip(indices, output[:, input_ids.shape[1] :].tolist(), strict=True):
                generations[index] = row[: row.index(eos_id)] if eos_id in row else row
    return generations
