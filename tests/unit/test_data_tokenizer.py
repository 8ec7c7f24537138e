"""The trained tokenizer: sentencepiece and transformers agree on every text, and vocabularies can be told apart."""

import json
import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, LlamaTokenizer

from megaokd.data.tokenizer import (
    encode_prompts,
    encode_texts,
    first_difference,
    load_tokenizer,
    save_tokenizer,
    vocabulary_hash,
    vocabulary_size,
)
from megaokd.data.tokenizer_training import train_tokenizer
from megaokd.errors import UserError
from tests.unit.data_helpers import tokenizer_folder

HOSTILE = [
    "",
    " ",
    "\n",
    "\n\n  \t x",
    " " * 37,
    "a\0b",
    "\r\n",
    "é漢😀\u200b",
    "</s> <s> <pad><unk>",
    "<0x0A>",
    "▁ ▁▁x",
]


@pytest.fixture(scope="module")
def source_texts() -> list[str]:
    folder = Path(json.__file__).parent
    files = [*sorted(folder.glob("*.py")), Path(random.__file__), Path(shutil.__file__)]
    return [path.read_text(encoding="utf-8") for path in files]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, source_texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(source_texts, folder, vocab_size=1500)
    return folder


def hostile_texts(source_texts: list[str]) -> list[str]:
    rng = random.Random(0)
    noise = ["".join(rng.choices("a  b\n\t_▁é</s>漢😀aa\r", k=rng.randint(0, 60))) for _ in range(3000)]
    return [*HOSTILE, *noise, *source_texts, *(part for text in source_texts for part in text.split("\n\n"))]


def test_transformers_and_sentencepiece_give_the_same_ids(
    trained: Path, source_texts: list[str], tmp_path: Path
) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    student = tmp_path / "student"  # an exported student: transformers then picks the class by the model's type
    shutil.copytree(trained, student)
    (student / "config.json").write_text(json.dumps({"model_type": "llama"}))
    saved = tmp_path / "saved"
    save_tokenizer(load_tokenizer(trained), saved)
    assert (saved / "tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()
    texts = hostile_texts(source_texts)
    expected = [processor.encode(text) for text in texts]
    for tokenizer in (*map(AutoTokenizer.from_pretrained, (trained, student, saved)), LlamaTokenizer(**llama(trained))):
        assert encode_texts(tokenizer, texts) == expected


def llama(folder: Path) -> dict[str, object]:
    """The parts that other programs rebuild a Llama tokenizer from."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return {"vocab": model["vocab"], "merges": merges, "add_prefix_space": False, "split_special_tokens": True}


def test_decoding_gives_the_text_back(trained: Path, source_texts: list[str]) -> None:
    tokenizer = load_tokenizer(trained)
    for text in hostile_texts(source_texts):
        ids = encode_texts(tokenizer, [text])[0]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("▁", " ")


def test_special_tokens_have_their_ids_and_a_plain_call_adds_bos(trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    ids = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (0, 1, 2, 3)
    assert vocabulary_size(tokenizer) == len(tokenizer) == 1500
    assert encode_prompts(tokenizer, ["def x():\n"]) == [tokenizer("def x():\n")["input_ids"]]
    assert encode_prompts(tokenizer, [""]) == [[1]]
    assert encode_texts(tokenizer, []) == []


def test_training_is_deterministic(trained: Path, source_texts: list[str], tmp_path: Path) -> None:
    train_tokenizer(source_texts, tmp_path, vocab_size=1500)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_hash_and_first_difference_tell_vocabularies_apart(trained: Path, tmp_path: Path) -> None:
    tokenizer, same = load_tokenizer(trained), load_tokenizer(trained)
    assert vocabulary_hash(tokenizer) == vocabulary_hash(same)
    assert first_difference(tokenizer, same) is None
    same.add_tokens(["<extra>"])
    assert vocabulary_hash(tokenizer) != vocabulary_hash(same)
    assert first_difference(tokenizer, same) == "id 1500 is absent in the first and '<extra>' in the second"
    other = load_tokenizer(tokenizer_folder(tmp_path / "other"))
    assert vocabulary_hash(tokenizer) != vocabulary_hash(other)
    assert str(first_difference(tokenizer, other)).startswith("id 260 is ")  # after 4 special tokens and 256 bytes


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text to train"):
        train_tokenizer(["", "\n\t\n"], tmp_path / "tokenizer", vocab_size=300)


@pytest.mark.parametrize("vocab_size", [10, 5000])
def test_a_vocabulary_that_does_not_fit_the_texts(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(UserError, match=f"a vocabulary of {vocab_size} tokens cannot be trained"):
        tokenizer_folder(tmp_path / "tokenizer", vocab_size)
    assert not (tmp_path / "tokenizer").exists()


def test_loading_what_is_not_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="there is no such tokenizer folder"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(
        UserError, match="nobody/nothing: there is no such folder, and the Hugging Face Hub does not give"
    ):
        load_tokenizer("nobody/nothing")
    assert "there is no folder nobody/nothing; asking the Hugging Face Hub" in capsys.readouterr().err
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a tokenizer's folder"):
        load_tokenizer(tmp_path / "file")


def test_a_tokenizer_without_end_token_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer(folder)
