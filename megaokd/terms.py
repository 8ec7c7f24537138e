"""How a configuration names the terms of an objective: a kind, and where it has an option, that in parentheses."""

PLAIN = ("ce", "forward_kl", "reverse_kl", "tvd")
WITH_OPTION = ("jsd", "skew_forward_kl", "skew_reverse_kl")
"""beta of the first, alpha of the others: jsd(0.9)."""
WITH_COUNT = ("forward_kl_top",)
"""A number of tokens: forward_kl_top(50)."""
ANCHOR = "anchor"
"""Of the teacher alone: KL(p_phi || p_0), what holds the online modules near the original teacher."""


def split_term(name: str) -> tuple[str, float | None]:
    """The kind of a checked name and its option: "jsd(0.9)" -> ("jsd", 0.9), "jsd" -> ("jsd", None)."""
    kind, parenthesis, option = name.partition("(")
    return kind, float(option.removesuffix(")")) if parenthesis else None


def check_term(name: str) -> str:
    """The name as it came.

    Raises:
        ValueError: it is not one of a term.
    """
    kind, parenthesis, option = name.partition("(")
    if kind not in (*PLAIN, *WITH_OPTION, *WITH_COUNT, ANCHOR):
        terms = ", ".join(map(repr, (*PLAIN, *WITH_OPTION, *WITH_COUNT)))
        raise ValueError(f"no such term; the terms are {terms} and, of the teacher, {ANCHOR!r}")
    if not parenthesis:
        return name
    if kind in WITH_COUNT:
        if not (option.endswith(")") and option[:-1].isdecimal() and int(option[:-1]) > 0):
            raise ValueError("the option must be a number of tokens, at least 1, as in forward_kl_top(50)")
        return name
    if kind not in WITH_OPTION:
        raise ValueError(f"{kind!r} takes no option in parentheses; {', '.join((*WITH_OPTION, *WITH_COUNT))} do")
    try:
        valid = option.endswith(")") and 0.0 < float(option[:-1]) < 1.0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("the option must be a number between 0 and 1, as in jsd(0.9)")
    return name
