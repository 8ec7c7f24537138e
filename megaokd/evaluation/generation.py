"""Greedy generations and their ROUGE-L."""

from collections.abc import Sequence

import torch
from rouge_score import rouge_scorer
from transformers import PreTrainedModel

from megaokd.evaluation.examples import left_padded


@torch.inference_mode()
def generate_greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    batch_size: int = 16,
) -> list[list[int]]:
    """Continue each prompt with the likeliest token until `eos_id` (left out of the result) or `max_new_tokens`.

    Prompts are padded on the left and run in batches of `batch_size` with a key-value cache, longest first.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    generations: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        input_ids, mask = left_padded([prompts[index] for index in indices], pad_id)
        output = model.generate(  # type: ignore[operator]  # seen through torch's Module.__getattr__
            input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_id,
            pad_token_id=pad_id,
        )
        for index, row in zip(indices, output[:, input_ids.shape[1] :].tolist(), strict=True):
            generations[index] = row[: row.index(eos_id)] if eos_id in row else row
    return generations


def rouge_l(references: Sequence[str], generations: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure (0 to 1) of `generations` against `references`, with the Porter stemmer."""
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, generations, strict=True)
    scores = [scorer.score(reference, generation)["rougeL"].fmeasure for reference, generation in pairs]
    return sum(scores) / len(scores)
