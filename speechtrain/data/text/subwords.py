"""`tokenizer=bpe`: pieces of words, learnt by SentencePiece from the training texts only."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from speechtrain.data.text.base import Tokenizer
from speechtrain.errors import DataError, first_line

proto: Any = sentencepiece_model_pb2  # made by protobuf, without types
_UNKNOWN = "<unk>"  # SentencePiece needs it; it is no label


class BpeTokenizer(Tokenizer):
    """Maps pieces of words to labels, by byte-pair encoding (Sennrich et al. 2016); the first piece of a word begins with `▁`.

    Args:
        texts: training texts.
        vocab_size: pieces at most, the blank not counted; small texts give fewer.
        vocabulary: pieces of a trained model, instead of learning them from `texts`.

    Raises:
        DataError: there are no texts, or more characters than pieces.
    """

    def __init__(self, texts: Iterable[str] = (), *, vocab_size: int = 500, vocabulary: Sequence[str] | None = None) -> None:
        self.vocabulary = list(vocabulary) if vocabulary is not None else ["", *_learn(texts, vocab_size)]
        self._labels = {piece: label for label, piece in enumerate(self.vocabulary) if label}
        self._model: sentencepiece.SentencePieceProcessor | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_model": None}  # made again where it is needed

    def encode(self, text: str) -> list[int]:
        """Convert a text to labels; characters that are in no piece are left out."""
        return [self._labels[piece] for piece in self._pieces(text) if piece in self._labels]

    def decode(self, labels: Sequence[int]) -> str:
        """Convert labels without blanks to text."""
        return " ".join("".join(self.vocabulary[label] for label in labels).replace(_SPACE, " ").split())

    def unknown(self, text: str) -> list[str]:
        """List the characters of a text that are in no piece."""
        return [piece for piece in self._pieces(text) if piece not in self._labels]

    def _pieces(self, text: str) -> list[str]:
        if self._model is None:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=_model_of(self.vocabulary[1:]))
        pieces: list[str] = self._model.encode(text, out_type=str)
        return pieces


_SPACE = "▁"


def _learn(texts: Iterable[str], vocab_size: int) -> list[str]:
    sentences = [text for text in texts if text]
    if not sentences:
        raise DataError("tokenizer=bpe learns its pieces from the training texts, and there are none")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size + 1,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",  # `data.normalize` was applied before
            max_sentence_length=1 << 20,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_id=0,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        characters = len({char for text in sentences for char in text} - {" "}) + 1
        fix = f"the text has {characters} characters, so tokenizer.vocab_size must be larger than that"
        raise DataError(
            f"tokenizer.vocab_size={vocab_size}: SentencePiece refuses it ({first_line(error, most=120)})\n    -> {fix}"
        ) from error
    learnt = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [learnt.id_to_piece(number) for number in range(1, learnt.get_piece_size())]


def _model_of(pieces: Sequence[str]) -> bytes:
    """Build the model that has these pieces: in byte-pair encoding a piece's rank is its score, so their order tells everything."""
    model = proto.ModelProto()
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id, model.trainer_spec.pad_id = 0, -1, -1, -1
    model.normalizer_spec.name = "identity"
    model.pieces.add(piece=_UNKNOWN, score=0.0, type=proto.ModelProto.SentencePiece.UNKNOWN)
    for rank, piece in enumerate(pieces):
        model.pieces.add(piece=piece, score=-float(rank))
    serialized: bytes = model.SerializeToString()
    return serialized
