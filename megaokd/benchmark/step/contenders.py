"""Who makes the step: our variants, what a user would write, TRL's trainer; and who must agree with whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaokd.benchmark.measure import Clock
from megaokd.benchmark.step.ours import Variant
from megaokd.benchmark.step.worker import Contender, Measured
from megaokd.benchmark.step.world import World
from megaokd.errors import UserError

_OURS = "megaokd.benchmark.step.ours:OurStep"
_USER = "megaokd.benchmark.step.user_loop:UserLoop"
_TRL = "megaokd.benchmark.step.trl_loop:TrlLoop"
_LIBRARIES = {
    _OURS: ("deepspeed", "torch._inductor.compile_fx"),
    _USER: ("peft", "transformers.models.llama.modeling_llama"),
    _TRL: ("trl.experimental.gkd", "datasets", "transformers.models.llama.modeling_llama"),
}

PLAIN, CACHED_PLAIN, SUPERVISED = "plain distillation", "plain distillation, cached", "labels only"
EVERY, QUARTER, EIGHTH = "OKD, every layer", "OKD, top quarter", "OKD, top eighth"
CACHED, RECOMPUTED = "OKD, top eighth, cached", "OKD, top quarter, recomputed"
USER, USER_PLAIN = "transformers + peft, top quarter", "transformers, plain distillation"
TRL = "TRL's GKD trainer, off-policy"

SAME_START = ("student_loss", "forward_kl", "norm of student")
"""Equal in the first step whatever the modules are, since they begin as nothing."""


@dataclass(frozen=True)
class Agreement:
    """What a contender shares with another: values of the first step, or all of every step."""

    reference: str
    names: Sequence[str] = SAME_START
    tolerance: float = 1e-5
    every_step: bool = False


AGREEMENTS: Mapping[str, Agreement] = {
    EVERY: Agreement(PLAIN),
    QUARTER: Agreement(PLAIN),
    EIGHTH: Agreement(PLAIN),
    CACHED: Agreement(EIGHTH, names=(), tolerance=0.0, every_step=True),
    CACHED_PLAIN: Agreement(PLAIN, names=(), tolerance=0.0, every_step=True),
    RECOMPUTED: Agreement(QUARTER, names=(), tolerance=0.0, every_step=True),
    USER: Agreement(QUARTER, (*SAME_START, "teacher_loss")),
    USER_PLAIN: Agreement(PLAIN),
    TRL: Agreement(PLAIN, ("forward_kl",)),
}


def our_variants(num_layers: int) -> list[Variant]:
    """Ours, for a teacher of so many layers."""
    quarter, eighth = max(1, num_layers // 4), max(1, num_layers // 8)
    return [
        Variant(SUPERVISED, teacher=False),
        Variant(PLAIN),
        Variant(EVERY, online_layers=num_layers),
        Variant(QUARTER, online_layers=quarter),
        Variant(EIGHTH, online_layers=eighth),
        Variant(CACHED_PLAIN, cached=True),
        Variant(CACHED, online_layers=eighth, cached=True),
        Variant(RECOMPUTED, online_layers=quarter, recompute=True),
    ]


def contenders(
    world: World, variants: Sequence[Variant], *, peers: bool, clock: Clock = "wall", rows: Sequence[str] = ()
) -> list[Contender]:
    """Ours, then the peers; with `rows` those alone, plain distillation, and whoever they must agree with.

    Raises:
        UserError: a row that there is not.
    """
    found = [_contender(variant.name, _OURS, world, variant=variant, clock=clock) for variant in variants]
    if peers:
        quarter = next(variant.online_layers for variant in variants if variant.name == QUARTER)
        found.append(_contender(USER, _USER, world, online_layers=quarter))
        found.append(_contender(USER_PLAIN, _USER, world, online_layers=None))
        found.append(_contender(TRL, _TRL, world))
    for one in found:
        one.clock = clock
    known = [one.name for one in found]
    for name in rows:
        if name not in known:
            raise UserError(f"--rows: no row is called {name!r}; there are {', '.join(map(repr, known))}")
    wanted = {PLAIN, *rows}
    wanted |= {AGREEMENTS[name].reference for name in wanted & AGREEMENTS.keys()}
    return [one for one in found if not rows or one.name in wanted]


def _contender(name: str, build: str, world: World, **arguments: Any) -> Contender:
    return Contender(name, build, {"world": world, **arguments}, _LIBRARIES[build])


def compare_values(found: Mapping[str, Contender]) -> None:
    """Sets `refused` where a contender's values are not those that it shares with its reference."""
    for name, agreement in AGREEMENTS.items():
        ours, theirs = found.get(name), found.get(agreement.reference)
        if ours is None or theirs is None or ours.refused or theirs.refused:
            continue
        steps = zip(ours.steps, theirs.steps, strict=True)
        pairs = list(steps) if agreement.every_step else list(steps)[:1]
        problems = [problem for pair in pairs for problem in _differences(*pair, agreement)]
        if problems:
            ours.refused = f"disagrees with {agreement.reference}: {problems[0]}"


def _differences(ours: Measured, theirs: Measured, agreement: Agreement) -> list[str]:
    problems = []
    for name in agreement.names or theirs.values:
        value, expected = ours.values[name], theirs.values[name]
        if not abs(value - expected) <= agreement.tolerance * abs(expected):
            problems.append(f"{name} is {value:.9g} instead of {expected:.9g}")
    return problems
