"""One evaluation, from folders on disk to a result."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megaokd.data.tokenizer import load_tokenizer, vocabulary_size
from megaokd.evaluation.examples import Example, Examples, read_examples
from megaokd.evaluation.generation import Sampling, generate
from megaokd.evaluation.loading import default_device, load_adapted, load_model
from megaokd.evaluation.prompts import prompts_of, read_prompts, spread, text_of
from megaokd.evaluation.text_metrics import TextMetrics, mean_over_seeds, measure_texts
from megaokd.evaluation.token_metrics import TokenMetrics, measure_tokens


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """What is generated."""

    count: int = 0
    """Prompts, spread evenly over the data set; 0: none."""
    max_new_tokens: int = 64
    prompts: str | None = None
    """A JSONL file of prompts and references instead of the data set's own."""
    seeds: int = 0
    """Sampled generations of each prompt, with seeds 0, 1, ...; 0: one greedy generation."""
    temperature: float = 1.0
    top_p: float = 1.0

    @property
    def samplings(self) -> list[Sampling | None]:
        """One a generation of every prompt."""
        if self.seeds == 0:
            return [None]
        return [Sampling(temperature=self.temperature, top_p=self.top_p, seed=seed) for seed in range(self.seeds)]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A continuation of a prompt, beside the texts that would be right."""

    prompt: str
    references: tuple[str, ...]
    generation: str
    seed: int | None = None
    """Of a sampled one."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result: where it comes from, token measures, and measures of the generations (None without any)."""

    model: str
    data: str
    teacher: str | None
    examples: int
    parameters: int
    metrics: TokenMetrics
    options: GenerationOptions = field(default_factory=GenerationOptions)
    adapted_teacher: str | None = None
    adapted: TokenMetrics | None = None
    """The same measures against the moved teacher."""
    texts: TextMetrics | None = None
    generations: tuple[Generation, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where an evaluation reads from."""

    model: str | Path
    data: str | Path
    """Named in the report."""
    tokenizer: str | Path
    """What made the data's ids."""
    teacher: str | Path | None = None
    adapted_teacher: str | Path | None = None
    """A model folder, or a PEFT adapter of the teacher."""


def evaluate(
    folders: Folders,
    data: Examples,
    options: GenerationOptions | None = None,
    *,
    max_length: int | None = None,
    max_batch_tokens: int = 4096,
) -> Evaluation:
    """Evaluate a model on `data`; divergences are to the teachers that are given.

    Examples are cut to `max_length` ids, by default to as many as the models have positions.

    Raises:
        UserError: a folder that does not hold what it should, vocabularies that differ, nothing to evaluate on.
    """
    start = time.perf_counter()
    options = options or GenerationOptions()
    tokenizer = load_tokenizer(folders.tokenizer)
    device = default_device()
    model = load_model(folders.model, tokenizer, device)
    teacher = None if folders.teacher is None else load_model(folders.teacher, tokenizer, device)
    positions = _positions(model, *([] if teacher is None else [teacher]))
    examples = read_examples(data, min(max_length or positions, positions))

    def measured(other: PreTrainedModel | None) -> TokenMetrics:
        return measure_tokens(
            model,
            examples,
            vocab_size=vocabulary_size(tokenizer),
            pad_id=_pad_id(tokenizer),
            teacher=other,
            max_batch_tokens=max_batch_tokens,
        )

    metrics = measured(teacher)
    del teacher  # its memory is the adapted one's now
    adapted = None
    if folders.adapted_teacher is not None:
        adapted = measured(load_adapted(folders.adapted_teacher, folders.teacher, tokenizer, device))
    result = Evaluation(
        model=str(folders.model),
        data=str(folders.data),
        teacher=None if folders.teacher is None else str(folders.teacher),
        examples=len(examples),
        parameters=model.num_parameters(),
        metrics=metrics,
        options=options,
        adapted_teacher=None if folders.adapted_teacher is None else str(folders.adapted_teacher),
        adapted=adapted,
    )
    if options.count:
        result = _with_generations(result, model, tokenizer, examples)
    return replace(result, seconds=time.perf_counter() - start)


def _with_generations(
    result: Evaluation, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> Evaluation:
    options = result.options
    prompts = prompts_of(examples, tokenizer) if options.prompts is None else read_prompts(options.prompts, tokenizer)
    chosen = spread(prompts, options.count, _positions(model) - options.max_new_tokens, options.max_new_tokens)
    generations: list[Generation] = []
    parts = []
    for sampling in options.samplings:
        outputs = generate(
            model,
            [prompt.ids for prompt in chosen],
            eos_id=tokenizer.eos_token_id,
            pad_id=_pad_id(tokenizer),
            max_new_tokens=options.max_new_tokens,
            sampling=sampling,
        )
        texts = [text_of(tokenizer, output) for output in outputs]
        parts.append(measure_texts([prompt.references for prompt in chosen], texts))
        seed = None if sampling is None else sampling.seed
        generations += [
            Generation(prompt=prompt.text, references=prompt.references, generation=text, seed=seed)
            for prompt, text in zip(chosen, texts, strict=True)
        ]
    return replace(result, generations=tuple(generations), texts=mean_over_seeds(parts))


def _positions(*models: PreTrainedModel) -> int:
    """How many positions all of `models` have; a model that declares no limit has none."""
    return min(int(getattr(model.config, "max_position_embeddings", sys.maxsize)) for model in models)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any valid id: what it stands for is masked."""
    pad_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pad_id
