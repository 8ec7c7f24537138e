"""What the figures of reports need beyond the project's own packages."""

import importlib.util

from megaokd.errors import UserError


def check_matplotlib() -> None:
    """Told before anything is measured: without it there is no report.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("the report's figures need matplotlib: pip install 'megaokd[report]'")
