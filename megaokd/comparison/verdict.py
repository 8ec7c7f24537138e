"""What a comparison's tables come to, in sentences: the best by each measure, and what is not told apart from it."""

from collections import Counter
from collections.abc import Sequence

from megaokd.comparison.results import JUDGED, MEASURES, MethodResult, Results, higher_is_better, kind_of


def verdict(results: Results, time: str) -> list[str]:
    """For a reader with one question; `time`: the training time that methods are compared by.

    Methods without all of the seeds are named and not ranked. The best is chosen by the seeds that it is then compared
    on, and nothing corrects for the number of comparisons.
    """
    most = max((method.seeds for method in results.methods), key=len, default=())
    ranked = [method for method in results.methods if method.seeds == most != ()]
    if len(ranked) < 2:
        return []
    sentences = []
    for key, column in results.measures.items():
        if kind_of(key) in JUDGED and all(key in method.measures for method in ranked):
            best, words = _best(ranked, key, column)
            sentences.append(words)
            alike = _of_usual_length(ranked)
            if best not in alike and len(alike) > 1:
                words = _best(alike, key, column)[1]
                sentences.append(f"Of those with the same number of updates: {words[0].lower()}{words[1:]}")
    fastest = min(ranked, key=lambda method: method.measures[time].mean + (method.writing_seconds(time) or 0.0))
    sentences.append(f"Shortest training: {fastest.name}, {fastest.measures[time].mean:.1f} {MEASURES[time][9:]}.")
    if results.evaluation.get("teacher_cross_entropy") is not None:
        sentences.append(f"The teacher's own cross-entropy: {results.evaluation['teacher_cross_entropy']:.4f}.")
    others = [method.name for method in results.methods if method.seeds != most]
    if others:
        sentences.append(f"Not ranked, without the seeds {', '.join(map(str, most))}: {', '.join(others)}.")
    return sentences


def _of_usual_length(ranked: Sequence[MethodResult]) -> list[MethodResult]:
    """Those with the number of updates that most of them have, the same for every seed."""
    usual = Counter(method.steps for method in ranked if len(set(method.steps)) == 1).most_common(1)
    return [method for method in ranked if usual and method.steps == usual[0][0]]


def _best(ranked: Sequence[MethodResult], key: str, column: str) -> tuple[MethodResult, str]:
    sign = -1.0 if higher_is_better(key) else 1.0
    order = sorted(ranked, key=lambda method: sign * method.measures[key].mean)
    best = order[0]
    updates = " / ".join(map(str, sorted(set(best.steps))))
    word = "Highest" if higher_is_better(key) else "Lowest"
    start = f"{word} {column}: {best.name}, {best.measures[key].mean:.4f} with {updates} updates."
    if len(best.seeds) < 2:
        return best, f"{start} One seed does not say whether that is chance; then {order[1].name}."
    close = [method.name for method in order[1:] if not _told_apart(method, best, key)]
    if not close:
        return best, f"{start} All others are behind it by more than their differences vary from seed to seed."
    return best, f"{start} Not told apart from it by {len(best.seeds)} seeds: {', '.join(close)}."


def _told_apart(method: MethodResult, best: MethodResult, key: str) -> bool:
    """Whether the 95% interval of the differences, seed by seed, leaves out 0."""
    difference = method.difference(best, key)
    if difference is None or difference.interval is None:
        return False
    return abs(difference.mean) > difference.interval
