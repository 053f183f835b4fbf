"""The vocabulary of a pretrained checkpoint: its own texts, whatever the order of its tokens."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from speechtrain.data.text.pretrained import PretrainedTokenizer
from speechtrain.errors import ConfigError


def tokenizer(folder: Path, vocabulary: Any, **settings: Any) -> PretrainedTokenizer:
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", "vocab_size": settings.pop("vocab_size", None)}))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer", **settings}))
    return PretrainedTokenizer(path=str(folder))


def test_the_blank_comes_first_wherever_it_stands_in_the_checkpoint(tmp_path: Path) -> None:
    made = tokenizer(
        tmp_path, {"a": 0, "|": 1, "sch": 2, "s": 3, "[UNK]": 4, "[PAD]": 5}, pad_token={"content": "[PAD]"}, unk_token="[UNK]"
    )
    assert made.vocabulary == ["", "a", " ", "sch", "s", "[UNK]"]
    assert made.outputs == [5, 0, 1, 2, 3, 4]
    labels = made.encode("sa schaz")
    assert labels == [4, 1, 2, 3, 1]
    assert made.decode([2, *labels, 2]) == "sa scha"
    assert made.unknown("sa schaz[UNK]") == ["z", *"[UNK]"]
    again = pickle.loads(pickle.dumps(made))
    assert again.encode("sa") == made.encode("sa")


def test_capital_letters_and_spaces_are_treated_as_the_checkpoint_says(tmp_path: Path) -> None:
    options = {"do_lower_case": True, "clean_up_tokenization_spaces": True, "pad_token": "<pad>"}
    made = tokenizer(tmp_path, {"<pad>": 0, "|": 1, "A": 2, ".": 3, "S": 4, "'": 5}, **options)
    assert made.vocabulary == ["", " ", "a", ".", "s", "'"]
    assert made.encode("a 's") == [2, 1, 5, 4]
    assert made.decode([2, 1, 5, 4, 1, 3]) == "a's."


def test_outputs_without_a_token_of_their_own_are_told_apart(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, {"<pad>": 0, "a": 1}, vocab_size=4)
    assert made.vocabulary == ["", "a", "<unk>", "<unk>#3"]
    assert made.decode([1, 2, 3]) == "a<unk><unk>"


def test_pieces_of_words_are_those_of_its_own_file(tmp_path: Path) -> None:
    import checkpoints

    checkpoints.pieces().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "parakeet_ctc", "vocab_size": 33}))
    made = PretrainedTokenizer(path=str(tmp_path))
    assert made.outputs[0] == 32
    labels = made.encode("the a")
    assert [made.vocabulary[label] for label in labels] == ["▁th", "e", "▁a"]
    assert made.decode(labels) == "the a"
    assert made.unknown("thé") == ["é"]


def test_a_vocabulary_without_a_blank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no '<pad>', which stands for the blank"):
        tokenizer(tmp_path, {"a": 0, "b": 1})
