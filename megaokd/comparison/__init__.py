"""Several methods with several seeds: the recipe, its grid of runs, the report."""
