"""Planning a run from `config.json` and a configuration: what it needs, how long it takes, which layouts fit."""
