"""A bare sentencepiece model (BPE or unigram) as a Hugging Face tokenizer with the same ids.

`transformers` can load such a file too, but leaves out the space that most models put in front of a text and the
removal of repeated spaces, and so gives other ids. Here the model's normaliser is followed; `load_tokenizer` compares
the two on texts that differ where conversions usually do, and refuses a model that is not represented exactly.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = "\u2581"  # sentencepiece writes a space as this character


def from_sentencepiece(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a .model file; whatever its parsers raise for a file that is none."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from transformers import PreTrainedTokenizerFast

    model = path.read_bytes()
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    special = {
        name: processor.id_to_piece(index)
        for name, index in (
            ("unk_token", processor.unk_id()),
            ("bos_token", processor.bos_id()),
            ("eos_token", processor.eos_id()),
            ("pad_token", processor.pad_id()),
        )
        if index >= 0
    }
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=_build(proto, processor),
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        **special,
    )
    return tokenizer


def merges(processor: Any) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third one, best piece first.

    sentencepiece joins the adjacent pair whose result scores highest, whichever way the result is split; its BPE gives
    pieces scores that fall with their id, so the order of ids is the order of merges.
    """
    pieces = {
        processor.id_to_piece(index): index
        for index in range(processor.get_piece_size())
        if not (processor.is_byte(index) or processor.is_control(index) or processor.is_unknown(index))
    }
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def _build(proto: Any, processor: Any) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type == trainer.UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in proto.pieces]
        tokenizer = Tokenizer(models.Unigram(scores, processor.unk_id(), trainer.byte_fallback))
    elif trainer.model_type == trainer.BPE:
        vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
        unknown = processor.id_to_piece(processor.unk_id())
        tokenizer = Tokenizer(
            models.BPE(
                vocabulary, merges(processor), unk_token=unknown, fuse_unk=True, byte_fallback=trainer.byte_fallback
            )
        )
    else:
        raise ValueError("only BPE and unigram models of sentencepiece are supported")
    steps: list[Any] = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if normalizer.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    prefix = [decoders.Strip(" ", 1, 0)] if normalizer.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *prefix]
    )
    control = [piece.piece for piece in proto.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in control])
    return tokenizer
