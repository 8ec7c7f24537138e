"""A run on one page of HTML: figures, warnings, numbers, configuration; no script, nothing from the net."""
