"""How time and memory of a step grow, what a pipeline leaves idle, what saves activations; beside what is predicted."""
