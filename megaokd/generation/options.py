"""How a model continues prompts."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Temperature, then top-k, then top-p, as in `transformers`."""

    max_new_tokens: int = 128
    """Most tokens of a response, its end-of-text token included."""
    temperature: float = 1.0
    """Logits are divided by it; 0: the likeliest token (greedy), the other options mean nothing."""
    top_k: int = 0
    """Only the so many likeliest tokens, and those as likely as the last of them; 0: all."""
    top_p: float = 1.0
    """Only the fewest likeliest tokens that have this share of the probability together; 1: all."""
    seed: int = 0
    """Of the random numbers; a row's depend on it, on the row's stream and on the place in the response alone."""

    def __post_init__(self) -> None:
        assert self.max_new_tokens > 0
        assert self.temperature >= 0.0
        assert self.top_k >= 0
        assert 0.0 < self.top_p <= 1.0

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0.0
