"""One evaluation, from folders on disk to a result."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megaokd.data.tokenizer import load_tokenizer
from megaokd.errors import UserError
from megaokd.evaluation.examples import Example, Examples, read_examples
from megaokd.evaluation.generation import continue_prompts
from megaokd.evaluation.loading import ModelLoader, is_adapter
from megaokd.evaluation.prompts import Prompt, prompts_of, read_prompts, spread, text_of
from megaokd.evaluation.ranks import Ranks
from megaokd.evaluation.text_metrics import TextMetrics, mean_over_seeds, measure_texts
from megaokd.evaluation.token_metrics import TokenMetrics, measure_tokens
from megaokd.generation import options as generation
from megaokd.models.decoder import Decoder
from megaokd.models.weight_map import whole_shapes


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """What is generated."""

    count: int = 0
    """Prompts of a set, spread evenly over it; 0: none."""
    max_new_tokens: int = 64
    prompts: str | Mapping[str, str] | None = None
    """A JSONL file of prompts and references instead of the data set's own; several, each with the name of its set."""
    seeds: int = 0
    """Sampled generations of each prompt, with seeds 0, 1, ...; 0: one greedy generation."""
    temperature: float = 1.0
    top_p: float = 1.0

    @property
    def samplings(self) -> list[generation.GenerationOptions]:
        """One a generation of every prompt."""
        if self.seeds == 0:
            return [generation.GenerationOptions(max_new_tokens=self.max_new_tokens, temperature=0.0)]
        return [
            generation.GenerationOptions(
                max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, seed=seed
            )
            for seed in range(self.seeds)
        ]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A continuation of a prompt, beside the texts that would be right."""

    prompt: str
    references: tuple[str, ...]
    generation: str
    seed: int | None = None
    """Of a sampled one."""


@dataclass(frozen=True, kw_only=True)
class GeneratedTexts:
    """The generations for a set of prompts, and what they measure."""

    metrics: TextMetrics
    generations: tuple[Generation, ...]


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
    sets: Mapping[str, GeneratedTexts] = field(default_factory=dict)
    """Name -> the generations for this set of prompts, instead of `texts` and `generations`."""
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
    ranks: Ranks | None = None,
    *,
    max_length: int | None = None,
    max_batch_tokens: int = 4096,
) -> Evaluation:
    """Evaluate a model on `data`; divergences are to the teachers that are given.

    Examples are cut to `max_length` ids, by default to as many as the models have positions. Collective over `ranks`,
    all of which return the same; default: one process.

    Raises:
        UserError: a folder that does not hold what it should, vocabularies that differ, nothing to evaluate on.
    """
    start = time.perf_counter()
    options, ranks = options or GenerationOptions(), ranks or Ranks.alone()
    tokenizer = load_tokenizer(folders.tokenizer)
    loader = ModelLoader(_models(folders), tokenizer, ranks)
    model = loader.load(folders.model)
    examples = read_examples(data, min(max_length or loader.positions, loader.positions))

    def measured(other: Decoder | None) -> TokenMetrics:
        pad_id = _pad_id(tokenizer)
        return measure_tokens(model, examples, ranks, pad_id=pad_id, teacher=other, max_batch_tokens=max_batch_tokens)

    metrics = measured(None if folders.teacher is None else loader.load(folders.teacher))
    adapted = None
    if folders.adapted_teacher is not None:
        adapted = measured(_adapted_teacher(loader, folders.adapted_teacher, folders.teacher))
    result = Evaluation(
        model=str(folders.model),
        data=str(folders.data),
        teacher=None if folders.teacher is None else str(folders.teacher),
        examples=len(examples),
        parameters=sum(math.prod(shape) for shape in whole_shapes(model.arch).values()),
        metrics=metrics,
        options=options,
        adapted_teacher=None if folders.adapted_teacher is None else str(folders.adapted_teacher),
        adapted=adapted,
    )
    if options.count:
        result = _with_generations(result, model, tokenizer, examples, ranks)
    return replace(result, seconds=time.perf_counter() - start)


def _models(folders: Folders) -> list[str | Path]:
    """The folders that are to hold whole models."""
    adapted = folders.adapted_teacher
    named = [folders.model, folders.teacher, None if adapted is None or is_adapter(adapted) else adapted]
    return [folder for folder in named if folder is not None]


def _adapted_teacher(loader: ModelLoader, adapted: str | Path, teacher: str | Path | None) -> Decoder:
    if not is_adapter(adapted):
        return loader.load(adapted)
    if teacher is None:
        raise UserError(f"{adapted} is an adapter: give the original teacher with --teacher")
    return loader.load_adapted(teacher, adapted)


def _with_generations(
    result: Evaluation, model: Decoder, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], ranks: Ranks
) -> Evaluation:
    options = result.options
    room = model.arch.max_positions - options.max_new_tokens

    def generated(source: str, prompts: Sequence[Prompt]) -> GeneratedTexts:
        chosen = spread(source, prompts, options.count, room, options.max_new_tokens)
        return _generate(model, tokenizer, chosen, options, ranks)

    if isinstance(options.prompts, Mapping):
        sets = {name: generated(path, read_prompts(path, tokenizer)) for name, path in options.prompts.items()}
        return replace(result, sets=sets)
    if options.prompts is None:
        texts = generated(result.data, prompts_of(examples, tokenizer))
    else:
        texts = generated(options.prompts, read_prompts(options.prompts, tokenizer))
    return replace(result, generations=texts.generations, texts=texts.metrics)


def _generate(
    model: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    options: GenerationOptions,
    ranks: Ranks,
) -> GeneratedTexts:
    ids = [prompt.ids for prompt in prompts]
    generations: list[Generation] = []
    parts = []
    for sampling in options.samplings:
        outputs = continue_prompts(model, ids, sampling, ranks, eos_id=int(tokenizer.eos_token_id))
        texts = [text_of(tokenizer, output) for output in outputs]
        parts.append(measure_texts([prompt.references for prompt in prompts], texts))
        generations += [
            Generation(
                prompt=prompt.text,
                references=prompt.references,
                generation=text,
                seed=None if sampling.greedy else sampling.seed,
            )
            for prompt, text in zip(prompts, texts, strict=True)
        ]
    return GeneratedTexts(metrics=mean_over_seeds(parts), generations=tuple(generations))


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any valid id: no token of an example sees it."""
    pad_id: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pad_id
