"""Generation with our own decoders, whole or split over tensor-parallel ranks."""
