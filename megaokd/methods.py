"""Named methods: what `method: NAME` fills into a configuration. All are the same loop with other terms."""

from dataclasses import dataclass, field
from typing import Any, Literal

MethodName = Literal[
    "sft", "forward_kl", "reverse_kl", "jsd", "tvd", "skew_forward_kl", "skew_reverse_kl", "alpha_mix",
    "forward_kl_top", "gkd", "distillm", "okd_lora", "okd_bottleneck", "okd_head", "pesf_kd",
]  # fmt: skip


@dataclass(frozen=True)
class Method:
    """What a method decides."""

    student: dict[str, float]
    kind: str | None = None
    """Of its online modules; None: a frozen teacher."""
    teacher: dict[str, float] = field(default_factory=dict)
    """The modules' terms: what is used where the configuration gives none."""
    has_teacher: bool = True
    on_policy: dict[str, Any] | None = None
    """Of train.on_policy: what is used where the configuration gives nothing else; None: the data's responses only."""


_OKD = {"ce": 1.0, "forward_kl": 0.1}
METHODS: dict[str, Method] = {
    "sft": Method({"ce": 1.0}, has_teacher=False),
    "forward_kl": Method({"ce": 1.0, "forward_kl": 1.0}),
    "reverse_kl": Method({"ce": 1.0, "reverse_kl": 1.0}),
    "jsd": Method({"ce": 1.0, "jsd": 1.0}),
    "tvd": Method({"ce": 1.0, "tvd": 1.0}),
    # The losses of DistiLLM (arXiv 2402.03898) with its alpha, on the data alone.
    "skew_forward_kl": Method({"ce": 1.0, "skew_forward_kl(0.1)": 1.0}),
    "skew_reverse_kl": Method({"ce": 1.0, "skew_reverse_kl(0.1)": 1.0}),
    # GKD (arXiv 2306.13649): the generalised JSD alone, half of the batches written by the student.
    "gkd": Method({"jsd": 1.0}, on_policy={"probability": 0.5}),
    # DistiLLM with its skewed reverse KL; probability, schedule and buffer as in its authors' code.
    "distillm": Method({"skew_reverse_kl(0.1)": 1.0}, on_policy={"probability": 0.0, "adaptive": {}}),
    "alpha_mix": Method({"ce": 1.0, "forward_kl": 0.5, "reverse_kl": 0.5}),
    "forward_kl_top": Method({"ce": 1.0, "forward_kl_top(50)": 1.0}),
    "okd_lora": Method({"ce": 1.0, "forward_kl": 1.0}, "lora", _OKD),
    "okd_bottleneck": Method({"ce": 1.0, "forward_kl": 1.0}, "bottleneck", _OKD),
    "okd_head": Method({"ce": 1.0, "forward_kl": 1.0}, "head", _OKD),
    # PESF-KD (arXiv 2205.15308): one divergence in one joint objective, so it moves both sides alike.
    "pesf_kd": Method({"ce": 1.0, "forward_kl": 1.0}, "head", {"ce": 1.0, "forward_kl": 1.0}),
}
_UNUSED = {"bottleneck": {"targets"}, "head": {"targets", "layers"}}
"""Keys of teacher.online that a kind does not know."""


def forget_decided(values: dict[str, Any]) -> None:
    """Take out of a file's values, in place, what a method named on the command line decides instead."""
    objective, teacher = values.get("objective"), values.get("teacher")
    if isinstance(objective, dict):
        objective.pop("student", None)
        objective.pop("teacher", None)
    if isinstance(teacher, dict) and "online" in teacher:
        if teacher["online"] is None:
            del teacher["online"]
        elif isinstance(teacher["online"], dict):
            teacher["online"].pop("kind", None)


def apply_method(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a configuration with those that its `method` decides; unchanged where it names none.

    A section that is not a mapping stays for the configuration's own check.

    Raises:
        ValueError: the configuration decides otherwise what the method decides.
    """
    method = METHODS.get(values.get("method") or "")
    objective, teacher, train = (values.get(name) or {} for name in ("objective", "teacher", "train"))
    if method is None or not all(isinstance(section, dict) for section in (objective, teacher, train)):
        return values
    objective = {"student": method.student, "teacher": method.teacher} | objective
    if objective["student"] != method.student:
        raise ValueError(f"it decides objective.student: {method.student}; leave out one of the two")
    if method.has_teacher and teacher.get("path") is None:
        raise ValueError("it needs a teacher; give teacher.path")
    values = values | {"objective": objective, "teacher": teacher | _teacher(method, teacher)}
    if method.on_policy is None and "on_policy" not in train:
        return values
    return values | {"train": train | {"on_policy": _on_policy(method, train)}}


def _on_policy(method: Method, train: dict[str, Any]) -> Any:
    """Dropped where a method has no use for it, as the size of modules is."""
    given = train.get("on_policy") or {}
    if method.on_policy is None:
        return None
    return method.on_policy | given if isinstance(given, dict) else given


def _teacher(method: Method, teacher: dict[str, Any]) -> dict[str, Any]:
    """What a method has no use for is dropped, so that methods can share a file."""
    if method.kind is None:
        return {"online": None} if method.has_teacher else {"online": None, "path": None}
    online = teacher.get("online", {})
    if not isinstance(online, dict) or online.get("kind", method.kind) != method.kind:
        raise ValueError(f"it decides teacher.online.kind: {method.kind}; leave teacher.online={online} out")
    used = {key: value for key, value in online.items() if key not in _UNUSED.get(method.kind, ())}
    return {"online": {"kind": method.kind, **used}}
