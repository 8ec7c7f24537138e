"""The terms of a loss, on the data and on the student's own text; what `train.on_policy` does not go together with."""

from megaokd.config import Config
from megaokd.distill.objective import Terms
from megaokd.errors import UserError


def chosen_terms(config: Config) -> tuple[Terms, Terms | None]:
    """The terms of the loss, and those on text that the student has written, if the run trains on such text.

    Raises:
        UserError: a side would have nothing to learn, or `check_on_policy` refuses; the configuration alone decides it.
    """
    has_teacher = config.teacher.path is not None
    online = has_teacher and config.teacher.online is not None
    terms = Terms.from_config(config.objective, has_teacher=has_teacher, online=online)
    check_on_policy(config)
    on_policy = config.train.on_policy
    return terms, terms_on_generated(terms, keep_ce=on_policy.ce) if on_policy is not None else None


def check_on_policy(config: Config) -> None:
    """Refuse, before anything is built, a configuration under which the student cannot write its own responses."""
    if config.train.on_policy is None:
        return
    reason = None
    if config.parallel.pipeline > 1:
        reason = (
            "does not run with parallel.pipeline > 1: a token at a time, one stage would work while the others wait; "
            "use parallel.tensor and data parallelism"
        )
    elif config.data.packing:
        reason = "needs data.packing=false: each row is one prompt that the student continues"
    elif config.train.on_policy.adaptive is not None and not config.train.validate_every:
        reason = "with adaptive needs train.validate_every, and data.validation: it follows the validation loss"
    elif config.train.on_policy.adaptive is not None and (
        config.train.on_policy.adaptive.capacity < config.train.global_batch
    ):
        reason = (
            f"needs adaptive.capacity of at least train.global_batch={config.train.global_batch}: a step draws as many "
            "rows from it"
        )
    elif config.teacher.cache is not None:
        reason = "needs teacher.cache=null: a cache knows the data's texts, and nothing of what the student writes"
    if reason is not None:
        raise UserError(f"train.on_policy {reason}")


def terms_on_generated(terms: Terms, *, keep_ce: bool) -> Terms:
    """The terms for text that the student has written: without cross-entropy, which is measured only, unless kept.

    Raises:
        UserError: the student would have nothing to learn from it.
    """
    chosen = terms if keep_ce else terms.without_ce()
    if not any(term.weight for term in chosen.student):
        raise UserError(
            "train.on_policy: the student learns from its own text through divergences to the teacher; give "
            "objective.student one with a weight above 0, and teacher.path (train.on_policy.ce=true would train it to "
            "repeat itself)"
        )
    return chosen
