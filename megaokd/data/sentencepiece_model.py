"""A bare sentencepiece model (BPE or unigram) as a Hugging Face tokenizer with the same ids.

`transformers` can load such a file too, but leaves out the space that most models put in front of a text and the
removal of repeated spaces, and so gives other ids. Here the model's normaliser is followed; `load_tokenizer` compares
the two on texts that differ where conversions usually do, and refuses a model that is not represented exactly.
"""

import re
from collections.abc import Sequence
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


def probes(path: Path) -> list[str]:
    """Texts around each piece that was not learned (control, byte and user-defined ones), alone and with neighbours."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    given = [piece.piece for piece in proto.pieces if piece.type != piece.NORMAL]
    return [
        text
        for piece, other in zip(given, [*given[1:], *given[:1]], strict=True)
        for text in (piece, f"a{piece}b", f" a {piece}  b ", f"{piece}{piece}", f"{piece}{other}")
    ]


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
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    reserved = [piece.piece for piece in proto.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    defined = [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]
    if trainer.model_type == trainer.UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in proto.pieces]
        tokenizer = Tokenizer(models.Unigram(scores, processor.unk_id(), trainer.byte_fallback))
        spelled = [*reserved, *(piece.piece for piece in proto.pieces if piece.type == piece.BYTE)]
        tokenizer.pre_tokenizer = pre_tokenizers.Split(_inside_first(spelled), "merged_with_previous")
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
    tokenizer.normalizer = _normalizer(normalizer)
    prefix = [decoders.Strip(" ", 1, 0)] if normalizer.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *prefix]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in reserved])
    if trainer.model_type == trainer.BPE:
        # `tokenizers` looks for them in the normalised text, as sentencepiece does, but normalises them as well. One
        # that this changes (by the space in front of a text, for instance) it would find elsewhere or not at all.
        defined = [piece for piece in defined if tokenizer.normalizer.normalize_str(piece) == piece]
        tokenizer.add_tokens([AddedToken(piece, special=False, normalized=True) for piece in defined])
    return tokenizer


def _inside_first(pieces: Sequence[str]) -> Any:
    """Finds the first character of each of these pieces where a text spells it out.

    A unigram model of `tokenizers` takes control and byte pieces too; cut behind their first character it finds none.
    """
    from tokenizers import Regex

    return Regex("|".join(f"{re.escape(piece[0])}(?={re.escape(piece[1:])})" for piece in pieces))


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
