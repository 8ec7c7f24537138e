"""Commands around training; each file is a subcommand of `megaokd` and runs as `python tools/NAME.py`."""
