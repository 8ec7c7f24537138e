"""Telling a Hugging Face name from a path that does not exist, before the network is asked."""


def may_be_hub_name(source: str) -> bool:
    """Whether `source` has the form `name` or `owner/name` of a model or a dataset, and not that of a path."""
    return not source.startswith((".", "/", "~")) and source.count("/") <= 1
