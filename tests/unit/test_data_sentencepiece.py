"""Bare sentencepiece models: the same ids from `transformers`, or a refusal."""

import random
from pathlib import Path

import pytest
import sentencepiece
from transformers import PreTrainedTokenizerFast

from megaokd.data.tokenizer import encode_texts, load_tokenizer
from megaokd.errors import UserError
from tests.unit.data_helpers import EXAMPLES

SENTENCES = [f"{example.prompt} {example.response}" for example in EXAMPLES]


def sentencepiece_model(folder: Path, model_type: str, **options: object) -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(folder / "m"),
        model_type=model_type,
        vocab_size=330 if model_type == "bpe" else 310,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return folder / "m.model"


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("bpe", {}),
        ("unigram", {}),
        ("bpe", {"user_defined_symbols": ["<|user|>", "<|user", "item"], "add_dummy_prefix": False}),
        ("unigram", {"user_defined_symbols": ["<|user|>"]}),
    ],
)
def test_other_sentencepiece_models(tmp_path: Path, model_type: str, options: dict[str, object]) -> None:
    """Pieces of all kinds in the text, and from a folder that was saved."""
    loaded = load_tokenizer(sentencepiece_model(tmp_path, model_type, **options))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    rng = random.Random(0)
    parts = ["<|user|>", "<|user", "</s>", "<unk>", "<0x41>", "item", " ", "  ", "a", "list", "<", "漢", "\n"]
    noise = ["".join(rng.choices(parts, k=rng.randint(1, 9))) for _ in range(500)]
    loaded.save_pretrained(tmp_path / "saved")
    for tokenizer in (loaded, load_tokenizer(tmp_path / "saved")):
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        for line in [*SENTENCES, *noise, "  two  spaces ", "\uff21\ufb01 漢\t\n", "", " "]:
            assert encode_texts(tokenizer, [line])[0] == processor.encode(line)
    (tmp_path / "broken.model").write_bytes((tmp_path / "m.model").read_bytes()[:1000])
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path / "broken.model")


@pytest.mark.parametrize(
    ("model_type", "symbol"),
    [("bpe", "<|user|>"), ("bpe", "\uff21"), ("unigram", "\n")],
)
def test_a_piece_of_the_user_that_gives_other_ids_is_refused(tmp_path: Path, model_type: str, symbol: str) -> None:
    """With a space in front of texts; one that sentencepiece keeps from its normaliser, and `tokenizers` cannot."""
    model = sentencepiece_model(tmp_path, model_type, user_defined_symbols=[symbol])
    with pytest.raises(UserError, match=r"m\.model: transformers gives other ids than sentencepiece for '"):
        load_tokenizer(model)
