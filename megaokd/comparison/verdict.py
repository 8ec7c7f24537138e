"""What a comparison's tables come to, in sentences: the best by each measure, and what is not told apart from it."""

from collections.abc import Sequence

from megaokd.comparison.results import JUDGED, MEASURES, MethodResult, Results, higher_is_better, kind_of


def verdict(results: Results, time: str) -> list[str]:
    """For a reader with one question; `time`: the training time that methods are compared by.

    Methods with fewer seeds than others are named and not ranked.
    """
    most = max((len(method.seeds) for method in results.methods), default=0)
    ranked = [method for method in results.methods if len(method.seeds) == most > 0]
    if len(ranked) < 2:
        return []
    sentences = []
    for key, column in results.measures.items():
        if kind_of(key) in JUDGED and all(key in method.measures for method in ranked):
            best, words = _best(ranked, key, column)
            sentences.append(words)
            alike = [method for method in ranked if method.steps != best.steps]
            if len({method.steps for method in alike}) == 1 < len(alike):  # the best one took more or fewer updates
                words = _best(alike, key, column)[1]
                sentences.append(f"Of those with the same number of updates: {words[0].lower()}{words[1:]}")
    fastest = min(ranked, key=lambda method: method.measures[time].mean)
    sentences.append(f"Shortest training: {fastest.name}, {fastest.measures[time].mean:.1f} {MEASURES[time][9:]}.")
    if results.evaluation.get("teacher_cross_entropy") is not None:
        sentences.append(f"The teacher's own cross-entropy: {results.evaluation['teacher_cross_entropy']:.4f}.")
    fewer = [method.name for method in results.methods if len(method.seeds) < most]
    if fewer:
        sentences.append(f"Not ranked, with fewer than {most} seeds: {', '.join(fewer)}.")
    return sentences


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
