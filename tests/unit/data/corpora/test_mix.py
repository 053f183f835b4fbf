"""Several corpora as one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import corpora
import pytest
from conftest import prepared

from speechtrain import compose
from speechtrain.data.task_data import TaskData
from speechtrain.errors import ConfigError

QUIET = ["tracking=[]", "report.enabled=false", "features=logmel_8k", "backend.threads=1"]


@pytest.fixture
def mixed(tmp_path: Path) -> list[str]:
    tones = ["+data@data.corpora.tones=synthetic", "data.corpora.tones.train_size=40", "data.corpora.tones.val_size=4"]
    books = ["+data@data.corpora.books=mini_librispeech", f"data.corpora.books.root={corpora.librispeech(tmp_path)}"]
    return ["data=mix", *tones, *books, *QUIET]


def of_each(data: TaskData, split: str) -> Counter[str]:
    return Counter(cut.id.partition("/")[0] for cut in data.corpus.splits[split])


def test_corpora_of_different_kinds_are_read_as_one(mixed: list[str]) -> None:
    data = prepared(mixed)
    assert of_each(data, "train") == {"tones": 40, "books": 8}
    assert of_each(data, "val") == {"tones": 4, "books": 8}
    assert {cut.speaker for cut in data.corpus.splits["train"]} == {None, "books/100", "books/101"}
    loader = data.loader("train", shuffle=True)
    assert loader is not None
    assert sum(len(batch.ids) for batch in loader) == 48
    alone = prepared(["data=synthetic", "data.train_size=40", "data.val_size=4", *QUIET])
    for cut in list(alone.corpus.splits["train"])[:5]:
        same = next(each for each in data.corpus.splits["train"] if each.id == f"tones/{cut.id}")
        assert (data.corpus.read(same, 8000) == alone.corpus.read(cut, 8000)).all()


def test_weights_say_how_often_training_utterances_are_seen(mixed: list[str]) -> None:
    data = prepared([*mixed, "+data.weights.books=3", "+data.weights.tones=0.5"])
    assert of_each(data, "train")["books"] == 24
    assert 10 <= of_each(data, "train")["tones"] <= 30
    assert of_each(data, "val") == {"tones": 4, "books": 8}
    again = prepared([*mixed, "+data.weights.books=3", "+data.weights.tones=0.5"])
    assert [cut.id for cut in again.corpus.splits["train"]] == [cut.id for cut in data.corpus.splits["train"]]
    assert data.cache.spectrum(next(cut for cut in data.corpus.splits["train"] if cut.id.endswith("#3"))).shape[0] > 0


def test_mistakes_are_named_with_the_corpus(mixed: list[str], tmp_path: Path) -> None:
    for more, message in (
        (["+data.weights.news=2"], r"data\.weights\.news: there is no such corpus(?s:.*)there is: tones, books"),
        (["+data.weights.books=0"], r"data\.weights\.books: must be more than 0"),
        (["data.corpora.books.root=nowhere"], r"data\.corpora\.books\.root: no such folder"),
        (["data.corpora.tones.train_size=0"], r"data\.corpora\.tones\.train_size: must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            compose([*mixed, *more])
