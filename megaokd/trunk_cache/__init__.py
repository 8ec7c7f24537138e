"""A cache on disk of what the teacher's frozen lower layers give for each example."""
