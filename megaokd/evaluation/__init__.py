"""Evaluation of Hugging Face model folders, whole or split over processes."""
