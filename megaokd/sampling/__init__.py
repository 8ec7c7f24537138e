"""Training on what the student writes: who writes when, and what becomes of it."""
