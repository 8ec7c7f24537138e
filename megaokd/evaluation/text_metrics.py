"""Measures of generated texts: ROUGE-L, distinct n-grams, length; means over sampling seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rouge_score import rouge_scorer
from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class TextMetrics:
    """Measures of one generation of every prompt, or their means over seeds."""

    rouge_l: float
    """Mean F-measure, 0 to 1."""
    distinct_1: float
    distinct_2: float
    """Different n-grams / all n-grams of the generations; after arXiv 1510.03055, which divides by the words."""
    length_ratio: float
    """Words generated / words of the references, each prompt's references averaged."""
    rouge_l_interval: float | None = None
    """Half the width of the 95% confidence interval of the mean over seeds; None for a single generation."""


def measure_texts(references: Sequence[Sequence[str]], generations: Sequence[str]) -> TextMetrics:
    """references: of each prompt, one or more."""
    words = [text.split() for text in generations]
    expected = sum(statistics.fmean(len(text.split()) for text in texts) for texts in references)
    return TextMetrics(
        rouge_l=rouge_l(references, generations),
        distinct_1=distinct(words, 1),
        distinct_2=distinct(words, 2),
        length_ratio=sum(map(len, words)) / expected if expected else 0.0,
    )


def rouge_l(references: Sequence[Sequence[str]], generations: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure with the Porter stemmer; of several references the one that fits best counts."""
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, generations, strict=True)
    return statistics.fmean(scorer.score_multi(texts, generation)["rougeL"].fmeasure for texts, generation in pairs)


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams over all n-grams, none across texts; 0 where there is none."""
    grams = [tuple(words[start : start + n]) for words in texts for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def mean_over_seeds(parts: Sequence[TextMetrics]) -> TextMetrics:
    """Means, and the interval of ROUGE-L by Student's t over the seeds."""
    scores = [part.rouge_l for part in parts]
    return TextMetrics(
        rouge_l=statistics.fmean(scores),
        distinct_1=statistics.fmean(part.distinct_1 for part in parts),
        distinct_2=statistics.fmean(part.distinct_2 for part in parts),
        length_ratio=statistics.fmean(part.length_ratio for part in parts),
        rouge_l_interval=half_interval(scores),
    )


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95% confidence interval of the mean, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / len(values) ** 0.5
