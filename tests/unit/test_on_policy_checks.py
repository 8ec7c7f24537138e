"""What training on the student's own text is refused with."""

import json
from typing import Any

import pytest

from megaokd.config_file import parse_config
from megaokd.distill.objective import Terms
from megaokd.errors import UserError
from megaokd.options.on_policy import Adaptive
from megaokd.sampling.adaptive import Schedule
from megaokd.sampling.check import check_on_policy, terms_on_generated
from megaokd.sampling.on_policy import draw

BASE: dict[str, Any] = {"data": {"train": "t"}, "checkpoint": {"folder": "f"}, "teacher": {"path": "t"}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallel": {"pipeline": 2}}, "parallel.pipeline > 1"),
        ({"data": {"train": "t", "packing": True}}, "data.packing=false"),
        ({"train": {"steps": 1, "on_policy": {"adaptive": {}}}}, "train.validate_every"),
        (
            {"train": {"steps": 1, "validate_every": 1, "on_policy": {"adaptive": {"capacity": 31}}}},
            "train.global_batch=32",
        ),
        ({"teacher": {"path": "t", "cache": {"path": "c"}}}, "teacher.cache=null"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], reason: str) -> None:
    check_on_policy(parse_config({**BASE, **changes, "train": {"steps": 1}}))
    on = parse_config({**BASE, "train": {"steps": 1, "on_policy": {}}, **changes})
    with pytest.raises(UserError, match=rf"^train\.on_policy .*{reason}"):
        check_on_policy(on)


def test_cross_entropy_counts_only_where_it_is_asked_for() -> None:
    config = parse_config({**BASE, "train": {"steps": 1}, "objective": {"student": {"ce": 1.0, "jsd": 2.0}}})
    terms = Terms.from_config(config.objective, has_teacher=True, online=True)
    assert [term.weight for term in terms_on_generated(terms, keep_ce=False).student] == [0.0, 2.0]
    assert [term.weight for term in terms_on_generated(terms, keep_ce=False).teacher] == [0.0, 0.1]
    assert terms_on_generated(terms, keep_ce=True) == terms
    alone = Terms.from_config(config.objective, has_teacher=False, online=False)
    with pytest.raises(UserError, match="divergences to the teacher"):
        terms_on_generated(alone, keep_ce=False)


def test_steps_are_drawn_with_their_probability() -> None:
    drawn = [draw(3, step) < 0.3 for step in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.3, abs=0.03)


def test_gkd_is_a_method() -> None:
    plain = parse_config({**BASE, "train": {"steps": 1}, "method": "gkd"})
    assert plain.train.on_policy is not None
    assert plain.train.on_policy.probability == 0.5
    given = parse_config({**BASE, "train": {"steps": 1, "on_policy": {"top_k": 5}}, "method": "gkd"}).train.on_policy
    assert given is not None
    assert (given.probability, given.top_k) == (0.5, 5)
    other = parse_config({**BASE, "train": {"steps": 1, "on_policy": {"top_k": 5}}, "method": "forward_kl"})
    assert other.train.on_policy is None


def test_the_schedule_follows_the_validation_loss() -> None:
    schedule = Schedule(Adaptive(tolerance=0.1, increase=0.4, capacity=4), 0.0, total_steps=10, max_new_tokens=3)
    found = []
    for loss in (2.0, 1.5, 2.05, 2.2, 2.25, 2.35, 2.5, 2.7):
        schedule.after_validation(loss)
        found.append(schedule.probability)
    assert found == pytest.approx([0.0, 0.0, 0.0, 0.4, 0.4, 0.8, 1.0, 1.0])
    other = Schedule(schedule.options, 0.0, total_steps=10, max_new_tokens=3)
    other.restore(json.loads(json.dumps(schedule.state)))
    assert (other.probability, other.reference) == (1.0, 2.7)


def test_writing_anew_becomes_rare() -> None:
    schedule = Schedule(Adaptive(capacity=4), 0.5, total_steps=10, max_new_tokens=3)
    assert [schedule.origin(drawn, 6) for drawn in (0.1, 0.3, 0.6)] == ["student", "student", "data"]
    schedule.replay.stored = 4
    assert [schedule.origin(drawn, 6) for drawn in (0.1, 0.3, 0.6)] == ["student", "replay", "data"]
