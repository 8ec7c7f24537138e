"""One evaluation, from folders on disk to a result."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megaokd.data.tokenizer import load_tokenizer, vocabulary_size
from megaokd.errors import UserError
from megaokd.evaluation.examples import Example, Examples, read_examples
from megaokd.evaluation.generation import generate_greedy, rouge_l
from megaokd.evaluation.loading import default_device, load_model
from megaokd.evaluation.token_metrics import TokenMetrics, measure_tokens


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A greedy continuation of a prompt, beside the text of the data set."""

    prompt: str
    reference: str
    generation: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result: where it comes from, token measures, and ROUGE-L of the generations (None without any)."""

    model: str
    data: str
    teacher: str | None
    examples: int
    parameters: int
    metrics: TokenMetrics
    max_new_tokens: int
    rouge_l: float | None = None
    generations: tuple[Generation, ...] = ()
    seconds: float = 0.0


def evaluate(
    model_folder: str | Path,
    data: Examples,
    *,
    data_folder: str | Path,
    tokenizer_folder: str | Path,
    teacher_folder: str | Path | None = None,
    num_generations: int = 0,
    max_new_tokens: int = 64,
    max_length: int | None = None,
    max_batch_tokens: int = 4096,
) -> Evaluation:
    """Evaluate the model in `model_folder` on `data`, whose ids were made by the tokenizer in `tokenizer_folder`.

    Divergences are to the model in `teacher_folder`. Examples are cut to `max_length` ids, by default to as many as
    the models have positions. Generations are spread evenly over the data set.

    Raises:
        UserError: a folder that does not hold what it should, vocabularies that differ, nothing to evaluate on.
    """
    start = time.perf_counter()
    tokenizer = load_tokenizer(tokenizer_folder)
    device = default_device()
    model = load_model(model_folder, tokenizer, device)
    teacher = None if teacher_folder is None else load_model(teacher_folder, tokenizer, device)
    positions = _positions(model, *([] if teacher is None else [teacher]))
    examples = read_examples(data, min(max_length or positions, positions))
    metrics = measure_tokens(
        model,
        examples,
        vocab_size=vocabulary_size(tokenizer),
        pad_id=_pad_id(tokenizer),
        teacher=teacher,
        max_batch_tokens=max_batch_tokens,
    )
    result = Evaluation(
        model=str(model_folder),
        data=str(data_folder),
        teacher=None if teacher_folder is None else str(teacher_folder),
        examples=len(examples),
        parameters=model.num_parameters(),
        metrics=metrics,
        max_new_tokens=max_new_tokens,
    )
    if num_generations:
        generations = _generate(model, tokenizer, examples, num_generations, max_new_tokens)
        score = rouge_l([g.reference for g in generations], [g.generation for g in generations])
        result = replace(result, generations=generations, rouge_l=score)
    return replace(result, seconds=time.perf_counter() - start)


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    num_generations: int,
    max_new_tokens: int,
) -> tuple[Generation, ...]:
    room = _positions(model) - max_new_tokens
    fitting = [example for example in examples if example.prompt_length <= room]
    if not fitting:
        raise UserError(
            f"no prompt leaves room for {max_new_tokens} new tokens in {_positions(model)} positions; "
            "lower --max-new-tokens"
        )
    count = min(num_generations, len(fitting))
    chosen = [fitting[index * len(fitting) // count] for index in range(count)]
    outputs = generate_greedy(
        model,
        [example.ids[: example.prompt_length] for example in chosen],
        eos_id=tokenizer.eos_token_id,
        pad_id=_pad_id(tokenizer),
        max_new_tokens=max_new_tokens,
    )
    return tuple(
        Generation(
            prompt=_text(tokenizer, example.ids[: example.prompt_length]),
            reference=_text(tokenizer, example.ids[example.prompt_length :]),
            generation=_text(tokenizer, output),
        )
        for example, output in zip(chosen, outputs, strict=True)
    )


def _positions(*models: PreTrainedModel) -> int:
    """How many positions all of `models` have; a model that declares no limit has none."""
    return min(int(getattr(model.config, "max_position_embeddings", sys.maxsize)) for model in models)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any valid id: what it stands for is masked."""
    pad_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pad_id


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
