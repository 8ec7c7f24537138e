"""What a comparison's report says: its tables and the sentences below them."""

from collections import Counter
from typing import Any

from megaokd.comparison.recipe import TIMES, Recipe
from megaokd.comparison.results import ADAPTED, MEASURES, Measured, MethodResult, Results
from megaokd.comparison.toy import ToyFit
from megaokd.comparison.work import OWN_TEXT

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""
_TIME_WORDS = {
    "wall": "the clock, which counts what else the machine did",
    "cpu": "CPU seconds, which leave out what else the machine did",
}


def result_tables(results: Results, reference: str | None = None, time: str = TIMES["wall"]) -> dict[str, Table]:
    """Heading -> what the students came to, by the training time `time`; the first one holds every method."""
    tables = {"Students, against the original teacher": _table(results, time)}
    other = next((method for method in results.methods if method.name == reference and method.seeds), None)
    if other is not None:
        tables[f"Differences to {other.name}, seed by seed"] = _differences(results, other)
    adapted = [method for method in results.methods if method.adapted]
    if adapted:
        rows = [(method.name, *(_cell(method.adapted.get(key), key) for key in ADAPTED)) for method in adapted]
        tables["Students, against their adapted teacher"] = (("method", *(MEASURES[key] for key in ADAPTED)), rows)
    return tables


def _differences(results: Results, reference: MethodResult) -> Table:
    """Means over the seeds that both have: what a seed does to both alike is not in their intervals."""
    rows = [
        (
            method.name,
            str(len(method.common_seeds(reference))),
            *(_cell(method.difference(reference, key), key, sign="+") for key in results.measures),
        )
        for method in results.methods
        if method is not reference and method.common_seeds(reference)
    ]
    return ("method", "seeds", *results.measures.values()), rows


def search_tables(results: Results) -> dict[str, Table]:
    """Heading -> the trials of a search."""
    return {
        f"Search for {name}: seed {choice['seed']}, by {choice['metric']} on the validation data": _search(choice)
        for name, choice in results.searches.items()
    }


def toy_table(fits: list[ToyFit]) -> Table:
    """One student a row, distances to the original teacher."""
    header = ("objective", "mass covered", "modes found", "mass between modes", "forward KL", "reverse KL")
    rows = [
        (
            fit.name,
            f"{fit.covered:.3f}",
            str(fit.modes),
            *(f"{value:.3f}" for value in (fit.stray, fit.forward_kl, fit.reverse_kl, fit.moved)),
        )
        for fit in fits
    ]
    return (*header, "teacher moved"), rows


def _search(choice: dict[str, Any]) -> Table:
    keys = list(choice["chosen"])
    rows = []
    for trial in choice["trials"]:
        mark = "chosen" if trial["settings"] == choice["chosen"] else ""
        settings = [str(trial["settings"][key]) for key in keys]
        if trial["value"] is None:
            measured = ["-"] * 4
            mark = "failed"
        else:
            times = [f"{trial[time]:.1f}" for time in TIMES.values()]
            measured = [f"{trial['value']:.4f}", str(trial["steps"]), *times]
        rows.append((*settings, *measured, mark))
    return (*keys, choice["metric"], "updates", *(MEASURES[time] for time in TIMES.values()), ""), rows


def _table(results: Results, time: str) -> Table:
    writing = [method.writing_seconds(time) for method in results.methods]
    header = ("method", "seeds", "updates", *results.measures.values())
    rows = [
        (
            method.name,
            str(len(method.seeds)),
            " / ".join(map(str, sorted(set(method.steps)))) or "-",
            *(_cell(method.measures.get(key), key) for key in results.measures),
        )
        for method in results.methods
    ]
    if set(writing) == {None}:
        return header, rows
    column = ["-" if seconds is None else f"{seconds:.1f}" for seconds in writing]
    name = MEASURES[time].replace("training", "writing")
    return (*header, name), [(*row, seconds) for row, seconds in zip(rows, column, strict=True)]


def _cell(measured: Measured | None, key: str, sign: str = "") -> str:
    if measured is None:
        return "-"
    digits = 1 if key in TIMES.values() else 4
    spread = "" if measured.interval is None else f" ± {measured.interval:.{digits}f}"
    return f"{measured.mean:{sign}.{digits}f}{spread}"


def notes_of(results: Results, recipe: Recipe) -> list[str]:
    """What has to be known to read the tables."""
    evaluation = results.evaluation
    notes = [
        "Mean ± half the 95% confidence interval over seeds (Student's t, each method by itself). With a seed all "
        "methods share initial student, batches and number of updates. Cross-entropy and divergences in nats a token.",
        f"Seeds: {', '.join(map(str, recipe.seeds))}. Processes of a training run: {recipe.processes}.",
        "Times are those in training steps, without start, validation and checkpoints: seconds by the clock, and CPU "
        f"seconds of all threads of all processes. Methods are compared by {_TIME_WORDS[recipe.time]}.",
    ]
    if evaluation:
        notes.append(
            f"On {evaluation['data']}: {evaluation['examples']:,} examples, {evaluation['tokens']:,} response tokens; "
            f"teacher: {evaluation['teacher'] or 'none'}; {evaluation['parameters']:,} parameters a student."
        )
        notes.append(_generations(recipe, evaluation))
    if any("cache" in (section.get("teacher") or {}) for section in (recipe.base, *recipe.methods.values())):
        notes.append(
            "What teacher.cache holds is made before the first step of a run that lacks it: in no training time."
        )
    notes += [*_links(recipe), *_written(results), *_own_text(results)]
    places = Counter(
        f"{place['commit']}, {place['cpu']}, {place.get('gpu', 'no GPU')}" for place in results.environments
    )
    notes += [f"Evaluated at {place}: {count} cells." for place, count in places.items()]
    dates = sorted(place["date"] for place in results.environments)
    if dates:
        notes.append(f"Cells were finished from {dates[0]} to {dates[-1]}.")
    return notes


def _links(recipe: Recipe) -> list[str]:
    """What entries take from others, and what that makes of the common rules."""
    notes = []
    for name, entry in recipe.entries.items():
        options = entry.options
        if options.equal_time_of:
            notes.append(
                f"{name} is {options.like} with as many updates as take the training time of "
                f"{options.equal_time_of} of the same seed: the one exception to the same number of updates."
            )
        if options.adapted_teacher_of:
            notes.append(
                f"{name} distils from the teacher that {options.adapted_teacher_of} of the same seed ended with, "
                "frozen from the start; making that teacher is not in its time."
            )
        if options.search:
            notes.append(
                f"The settings that were searched for {name} are for all seeds; its time leaves the search out."
            )
    if recipe.evaluation.data == (recipe.base.get("data") or {}).get("validation"):
        notes.append(
            "The students were measured on the validation data: no final result if settings were chosen there."
        )
    return notes


def _written(results: Results) -> list[str]:
    return [
        f"{method.name} trains on {cost.responses:,} responses of the teacher, {cost.tokens:,} tokens, written once "
        f"for all seeds in {cost.seconds:.1f} s by the clock and {cost.cpu_seconds:.1f} CPU seconds. No training time "
        "holds that; it is a part of the method's cost."
        for method in results.methods
        if (cost := method.written) is not None
    ]


def _own_text(results: Results) -> list[str]:
    """How much of a method's training was on what its student wrote: a probability of it may be small, or grow late."""
    notes = []
    for method in results.methods:
        if not method.own_text:
            continue
        generated, replayed = (method.own_text.get(name) for name in OWN_TEXT)
        assert generated is not None
        text = f"{method.name} trained on its student's own text in {generated.mean:.0f} of its updates"
        replays = "" if replayed is None else f", {replayed.mean:.0f} of them with text of earlier ones"
        notes.append(f"{text}{replays}{', means over seeds' if len(method.seeds) > 1 else ''}.")
    return notes


def _generations(recipe: Recipe, evaluation: dict[str, Any]) -> str:
    options = recipe.evaluation
    if options.generate == 0:
        return "No generations, so no ROUGE-L."
    kind = "greedy" if options.seeds == 0 else f"{options.seeds} sampled"
    prompts = f"{evaluation['generations'] // max(1, options.seeds)} prompts"
    if isinstance(options.prompts, dict):
        counts = {name: texts["generations"] // max(1, options.seeds) for name, texts in evaluation["sets"].items()}
        prompts = ", ".join(f"{counts[name]} prompts of {name} ({file})" for name, file in options.prompts.items())
    return f"ROUGE-L of {prompts}, {kind}, at most {options.max_new_tokens} new tokens."
