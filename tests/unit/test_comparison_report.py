"""The report of a comparison: the toy's fits against what is known of them, tables and both pages."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from megaokd.comparison import figures, page, tables, toy
from megaokd.comparison.grid import Cell
from megaokd.comparison.page import Section
from megaokd.comparison.recipe import EvaluationOptions, Recipe
from megaokd.comparison.results import Measured, MethodResult, Results, collect
from megaokd.comparison.tables import result_tables, search_tables
from megaokd.comparison.verdict import verdict
from megaokd.evaluation.responses import Cost


@pytest.fixture(scope="module")
def fits() -> dict[str, toy.ToyFit]:
    return {fit.name: fit for fit in toy.fit_all()}


def test_forward_kl_matches_moments(fits: dict[str, toy.ToyFit]) -> None:
    """Of all Gaussians the closest in forward KL has the mixture's mean and variance, also on a grid."""
    x, fit = toy.positions(), fits["forward KL"]
    for power in (1, 2):
        moments = [(p * x**power).sum().item() for p in (fit.student, toy.original())]
        assert moments[0] == pytest.approx(moments[1], rel=1e-3)
    assert (fit.modes, fit.moved) == (3, pytest.approx(0.0, abs=1e-12))
    assert fit.stray > 0.4


def test_reverse_kl_keeps_one_mode(fits: dict[str, toy.ToyFit]) -> None:
    """At one mode of weight w the divergence is that of the mode alone, -log w."""
    fit = fits["reverse KL"]
    assert fit.modes == 1
    assert fit.stray < 0.01
    assert fit.reverse_kl == pytest.approx(-torch.tensor(0.35).log().item(), abs=0.02)
    assert fit.forward_kl > 10
    assert fits["forward KL"].forward_kl < fits["JSD"].forward_kl < fit.forward_kl


def test_a_pulled_teacher_moves_towards_the_student(fits: dict[str, toy.ToyFit]) -> None:
    weak, strong = fits["OKD, pull 1"], fits["OKD, pull 5"]
    assert 0.1 < weak.moved < strong.moved
    # At the fixed point of CE + b KL(p || q) the teacher lies between the mixture and the student.
    for fit in (weak, strong):
        to_student = (fit.teacher - fit.student).abs().sum().item() / 2
        assert to_student < (toy.original() - fit.student).abs().sum().item() / 2


def test_differences_are_of_the_same_seeds() -> None:
    methods = [
        MethodResult(name="kd", seeds=(0, 1, 2), measures={"cross_entropy": Measured((1.0, 3.0, 2.0))}),
        MethodResult(name="okd", seeds=(2, 0), measures={"cross_entropy": Measured((1.5, 0.7))}),
        MethodResult(name="late", seeds=(), measures={}),
    ]
    results = Results(methods=methods, environments=[], failures={}, evaluation={})
    header, rows = result_tables(results, "kd")["Differences to kd, seed by seed"]
    ((name, seeds, entropy, *others),) = rows
    assert (name, seeds) == ("okd", "2")
    # Differences -0.5 and -0.3: mean -0.4, t(0.975, 1) = 12.7062 times their deviation 0.1414 over sqrt(2).
    assert entropy == "-0.4000 ± 1.2706"
    assert set(others) == {"-"}
    assert header[2] == "cross-entropy"
    assert list(result_tables(results)) == ["Students, against the original teacher"]


def test_time_of_writing_has_a_column_and_a_ring(tmp_path: Path) -> None:
    """Where a method has such a time, by the measure that methods are compared by."""
    measures = {"cross_entropy": Measured((1.0,)), "training_cpu_seconds": Measured((5.0,))}
    cost = Cost(responses=7, tokens=90, seconds=20.0, cpu_seconds=12.0)
    methods = [MethodResult(name="sft", seeds=(0,), measures=measures)]
    results = Results(methods=methods, environments=[], failures={}, evaluation={})
    ((header, _),) = result_tables(results, time="training_cpu_seconds").values()
    assert header[-1] == "training CPU seconds"
    methods.append(MethodResult(name="seqkd", seeds=(0,), measures=measures, written=cost))
    ((header, rows),) = result_tables(results, time="training_cpu_seconds").values()
    assert header[-1] == "writing CPU seconds"
    assert [row[-2:] for row in rows] == [("5.0", "-"), ("5.0", "12.0")]
    assert "7 responses of the teacher, 90 tokens, written once for all seeds in 20.0 s" in tables._written(results)[0]
    axis = Figure().subplots()
    figures._draw_methods(axis, methods, "cross_entropy", "training_cpu_seconds")
    assert [17.0, 1.0] in [point for points in axis.collections for point in points.get_offsets().tolist()]


def test_each_set_of_prompts_has_a_column_a_verdict_and_a_panel(tmp_path: Path) -> None:
    prompts = {"selfinst": "s.jsonl", "vicuna": "v.jsonl"}
    evaluation = EvaluationOptions(data="data/test", generate=500, prompts=prompts, seeds=2)
    methods: dict[str, Any] = {"kd": {}, "okd": {}}
    recipe = Recipe(folder=str(tmp_path), base={}, methods=methods, seeds=(0, 1), evaluation=evaluation)
    scores = {"kd": ((0.20, 0.21), (0.30, 0.32)), "okd": ((0.25, 0.26), (0.30, 0.28))}
    for name, (selfinst, vicuna) in scores.items():
        for seed in (0, 1):
            sets = {
                "selfinst": {"rouge_l": selfinst[seed], "distinct_1": 0.5, "generations": 504},
                "vicuna": {"rouge_l": vicuna[seed], "distinct_1": 0.5, "generations": 160},
            }
            write_finished(Cell(recipe, name, seed), {"sets": sets})
    results = collect(recipe, {})
    table, differences = list(result_tables(results, "kd").values())
    assert [column for column in table[0] if "ROUGE" in column] == ["ROUGE-L selfinst", "ROUGE-L vicuna"]
    place = table[0].index("ROUGE-L selfinst")
    # t(0.975, 1) = 12.7062 times the deviation 0.00707 over sqrt(2).
    assert [row[place] for row in table[1]] == ["0.2050 ± 0.0635", "0.2550 ± 0.0635"]
    assert dict(zip(*[differences[0], differences[1][0]], strict=True))["ROUGE-L vicuna"] == "-0.0200 ± 0.2541"
    words = verdict(results, "training_seconds")
    assert [sentence.partition(",")[0] for sentence in words if "ROUGE" in sentence] == [
        "Highest ROUGE-L selfinst: okd",
        "Highest ROUGE-L vicuna: kd",
    ]
    (note,) = (note for note in tables.notes_of(results, recipe) if "ROUGE-L" in note)
    assert note.startswith("ROUGE-L of 252 prompts of selfinst (s.jsonl), 80 prompts of vicuna (v.jsonl), 2 sampled,")
    figure = Figure()
    assert figures._draw_quality(figure, results, "training_seconds")
    assert [axis.get_ylabel() for axis in figure.axes] == ["cross-entropy", "ROUGE-L selfinst", "ROUGE-L vicuna"]


def test_cells_of_before_there_were_sets_are_read(tmp_path: Path) -> None:
    evaluation = EvaluationOptions(data="data/test", generate=4, prompts="one.jsonl")
    recipe = Recipe(folder=str(tmp_path), base={}, methods={"kd": {}}, seeds=(0,), evaluation=evaluation)
    write_finished(Cell(recipe, "kd", 0), {"rouge_l": 0.25})
    results = collect(recipe, {})
    ((header, (row,)),) = result_tables(results).values()
    assert dict(zip(header, row, strict=True))["ROUGE-L"] == "0.2500"
    assert "ROUGE-L of 4 prompts, greedy, at most 64 new tokens." in tables.notes_of(results, recipe)


def write_finished(cell: Cell, measured: dict[str, Any]) -> None:
    """A cell as it lies there when it has ended, of what these tests look at."""
    place = {"commit": "c", "cpu": "p", "date": "d"}
    evaluation = {"cross_entropy": 1.5, "adapted": None, "environment": place, **measured}
    evaluation |= {"data": "data/test", "examples": 9, "tokens": 90, "teacher": None, "parameters": 7, "generations": 4}
    cost = {"steps": 3, "training_seconds": 2.0, "training_cpu_seconds": 2.0}
    cell.evaluation_folder.mkdir(parents=True)
    (cell.folder / "log.jsonl").touch()
    (cell.folder / "summary.json").write_text(json.dumps(cost))
    (cell.evaluation_folder / "evaluation.json").write_text(json.dumps(evaluation))
    (cell.folder / "result.json").write_text(json.dumps({**cost, "evaluation": evaluation}))


def test_updates_on_the_students_own_text_are_told() -> None:
    recipe = Recipe(folder="f", base={}, methods={"a": {}}, seeds=(0, 1), evaluation=EvaluationOptions(data="d"))
    own = {"generated_steps": Measured((150.0, 140.0)), "replayed_steps": Measured((0.0, 2.0))}
    methods = [MethodResult(name="distillm", seeds=(0, 1), own_text=own), MethodResult(name="sft", seeds=(0, 1))]
    notes = tables.notes_of(Results(methods=methods, environments=[], failures={}, evaluation={}), recipe)
    assert [note for note in notes if "own text" in note] == [
        "distillm trained on its student's own text in 145 of its updates, 1 of them with text of earlier ones, means "
        "over seeds."
    ]


def test_the_verdict_tells_chance_from_difference() -> None:
    """By differences seed by seed: seeds may lie further apart than methods. What ran once is not ranked."""
    values = {"kd": (1.0, 2.0, 3.0), "sft": (1.31, 2.3, 3.32), "okd": (1.2, 1.9, 3.3)}
    time = {"training_seconds": Measured((5.0, 5.0, 5.0))}
    methods = [
        MethodResult(name=name, seeds=(0, 1, 2), steps=(9, 9, 9), measures={"cross_entropy": Measured(own)} | time)
        for name, own in values.items()
    ]
    once = MethodResult(name="jsd", seeds=(0,), steps=(9,), measures={"cross_entropy": Measured((0.1,))})
    results = Results(methods=[*methods, once], environments=[], failures={}, evaluation={"teacher_cross_entropy": 0.5})
    best, fastest, teacher, fewer = verdict(results, "training_seconds")
    assert best == "Lowest cross-entropy: kd, 2.0000 with 9 updates. Not told apart from it by 3 seeds: okd."
    assert fastest == "Shortest training: kd, 5.0 seconds."
    assert teacher == "The teacher's own cross-entropy: 0.5000."
    assert fewer == "Not ranked, without the seeds 0, 1, 2: jsd."
    longer = replace(methods[0], steps=(20, 21, 22))
    words = verdict(replace(results, methods=[longer, *methods[1:]]), "training_seconds")
    assert words[0].startswith("Lowest cross-entropy: kd, 2.0000 with 20 / 21 / 22 updates.")
    assert words[1].startswith("Of those with the same number of updates: lowest cross-entropy: okd, 2.1333 with")
    two = replace(longer, name="kd too", steps=(22, 23, 24))  # another one of equal time does not end the comparison
    assert verdict(replace(results, methods=[longer, two, *methods[1:]]), "training_seconds")[1] == words[1]
    split = replace(methods[1], seeds=(0, 1, 3))  # means over other seeds are not comparable
    words = verdict(replace(results, methods=[methods[0], split, methods[2]]), "training_seconds")
    assert words[-1] == "Not ranked, without the seeds 0, 1, 2: sft."
    assert "All others are behind" in verdict(replace(results, methods=methods[:2]), "training_seconds")[0]
    single = [
        replace(method, seeds=(0,), measures={"cross_entropy": Measured((n,))} | time)
        for n, method in enumerate(methods)
    ]
    assert "One seed does not say" in verdict(replace(results, methods=single), "training_seconds")[0]
    assert verdict(replace(results, methods=[once]), "training_seconds") == []


def test_a_method_far_behind_does_not_press_the_others_together() -> None:
    """Whatever is best stays in the frame, however far."""
    axis = Figure().subplots()
    values = {"best": 1.0, "a": 1.7, "b": 1.72, "c": 1.74, "d": 1.8, "worst": 3.4}
    assert figures._cut(axis, values, higher=False) == ["worst"]
    low, high = axis.get_ylim()
    assert low < 1.0
    assert 1.8 < high < 2.0
    assert figures._cut(axis, {name: -value for name, value in values.items()}, higher=True) == ["worst"]


def test_a_search_is_shown_with_what_failed() -> None:
    cost = {"steps": 5, "training_seconds": 2.0, "training_cpu_seconds": 3.0}
    trials = [
        {"settings": {"objective.teacher.forward_kl": 0.1}, "value": 1.25, **cost},
        {"settings": {"objective.teacher.forward_kl": 9.0}, "value": None, "failure": "exit status 2"},
    ]
    choice = {"metric": "validation/student_ce", "seed": 4, "trials": trials, "chosen": trials[0]["settings"]}
    results = Results(methods=[], environments=[], failures={}, evaluation={}, searches={"okd": choice})
    ((title, (header, rows)),) = search_tables(results).items()
    assert title == "Search for okd: seed 4, by validation/student_ce on the validation data"
    assert len(header) == 6
    assert rows == [("0.1", "1.2500", "5", "2.0", "3.0", "chosen"), ("9.0", "-", "-", "-", "-", "failed")]


def test_both_pages_hold_every_part_of_a_section(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"figure")
    section = Section(
        title="A < B",
        words=["words"],
        items=["item"],
        table=(("h", "g"), [("1", "2")]),
        figure="one.png",
        verbatim="v<",
    )
    text, html = page._markdown([section]), page._html([section], tmp_path)
    for part in ("## A < B", "words", "- item", "| 1 | 2 |", "figures/one.png", "````text\nv<\n````"):
        assert part in text
    for part in (
        "<h2>A &lt; B</h2>",
        "<p>words</p>",
        "<li>item</li>",
        "<td>1</td><td>2</td>",
        "base64,ZmlndXJl",
        "v&lt;",
    ):
        assert part in html
