"""Plain, unsharded references that the engine is tested against; they import nothing of the project."""
