"""Published corpora, read from folders of their real shape."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import corpora
import numpy as np
import pytest
import soundfile
from conftest import prepared

from speechtrain import compose
from speechtrain.data.corpora.kaldi import Kaldi
from speechtrain.data.corpora.published import An4, LibriSpeech, MiniLibriSpeech, Timit
from speechtrain.data.corpus import read_audio
from speechtrain.data.task_data import TaskData
from speechtrain.errors import ConfigError, DataError

QUIET = ["tracking=[]", "report.enabled=false", "features=logmel_8k", "backend.threads=1"]


def texts(data: TaskData, split: str) -> list[str]:
    return sorted(cut.text for cut in data.corpus.splits[split])


def speakers(data: TaskData, split: str) -> set[str | None]:
    return {cut.speaker for cut in data.corpus.splits[split]}


def test_librispeech_is_read_part_by_part(tmp_path: Path) -> None:
    corpora.librispeech(tmp_path, ("train-clean-100", "train-clean-360", "dev-clean", "test-clean"))
    given = ["data=librispeech", "data.train=[train-clean-100,train-clean-360]", "data.normalize=[nfc,lowercase]", *QUIET]
    above, inside = (prepared([*given, f"data.root={root}"]) for root in (tmp_path, tmp_path / "LibriSpeech"))
    assert above.fingerprint("train") == inside.fingerprint("train")
    assert {split: len(cuts) for split, cuts in above.corpus.splits.items()} == {"train": 16, "val": 8, "test": 8}
    assert texts(above, "test")[0] == "after early nightfall"
    assert speakers(above, "train") == {"100", "101", "110", "111"}
    assert not speakers(above, "train") & speakers(above, "val")


def test_a_bad_line_or_file_of_a_corpus_is_named_and_the_rest_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = corpora.librispeech(tmp_path) / "LibriSpeech" / "train-clean-5" / "100" / "7"
    (folder / "100-7-0001.flac").write_bytes(b"fLaC, says the name")
    (folder / "100-7-0002.flac").unlink()
    data = prepared(["data=mini_librispeech", f"data.root={tmp_path}", *QUIET])
    assert data.skipped == 2
    assert len(data.corpus.splits["train"]) == 6
    assert f"{folder}/100-7.trans.txt:2: {folder}/100-7-0001.flac: cannot be read as audio" in caplog.text
    assert f"no such file: {folder}/100-7-0002.flac" in caplog.text


def test_yesno_says_by_its_names_what_is_spoken(tmp_path: Path) -> None:
    data = prepared(["data=yesno", f"data.root={corpora.yesno(tmp_path)}", "data.split.val=20", *QUIET])
    assert {split: len(cuts) for split, cuts in data.corpus.splits.items()} == {"train": 5, "val": 1, "test": 6}
    assert all(cut.text == " ".join("YES" if digit == "1" else "NO" for digit in cut.id.split("_")) for cut in data.corpus.splits["test"])


@pytest.mark.parametrize(("in_words", "first"), [("true", 'In eighteen hundred "AFTER'), ("false", 'In 1802 "AFTER')])
def test_lj_speech_is_read_as_printed_or_as_spoken(tmp_path: Path, in_words: str, first: str) -> None:
    given = ["data=ljspeech", f"data.root={corpora.ljspeech(tmp_path)}", f"data.numbers_in_words={in_words}", *QUIET]
    data = prepared([*given, "data.split.val=10", "data.split.test=10"])
    assert [len(data.corpus.splits[split]) for split in ("train", "val", "test")] == [10, 1, 1]
    everything = [text for split in ("train", "val", "test") for text in texts(data, split)]
    assert any(text.startswith(first) for text in everything)


def test_common_voice_keeps_its_speakers_apart_and_its_letters(tmp_path: Path) -> None:
    given = ["data=common_voice", f"data.root={corpora.common_voice(tmp_path)}", "data.language=cy", *QUIET]
    data = prepared(given)
    assert texts(data, "train") == ["bore da meddai", "dŵr a thân", "mae'r tŷ'n fawr"]
    assert not speakers(data, "train") & speakers(data, "test")
    with pytest.raises(ConfigError, match="no such folder"):
        compose([given[0], "data.root=elsewhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"(?s)Common Voice is not there.*fetch it at commonvoice\.mozilla\.org"):
        prepared(["data=common_voice", f"data.root={tmp_path / 'empty'}", *QUIET])
    (tmp_path / "cy" / "dev.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(DataError, match=r"dev\.tsv: needs the columns 'path' and 'sentence', received \['a', 'b'\]"):
        prepared(given)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["data.phones=61", "tokenizer=word"], "h# sh ix hv q h#"),
        (["data.phones=48", "tokenizer=word"], "sil sh ix hh sil"),
        (["data.phones=39", "tokenizer=word"], "sil sh ih hh sil"),
        (["data.units=words"], "She had your dark suit."),
    ],
)
def test_timit_in_phones_and_in_words_without_the_sentences_all_speakers_read(tmp_path: Path, options: list[str], text: str) -> None:
    data = prepared(["data=timit", f"data.root={corpora.timit(tmp_path)}", *options, *QUIET])
    assert {split: [cut.id for cut in cuts] for split, cuts in data.corpus.splits.items()} == {
        "train": ["fcjf0-si648", "fcjf0-sx127"],
        "val": ["fdms0-si648", "fdms0-sx127"],
        "test": ["mdab0-si648", "mdab0-sx127"],
    }
    assert texts(data, "train") == [text, text]


def test_an4_takes_validation_speakers_from_its_training_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpora.an4(tmp_path)
    with (tmp_path / "an4" / "etc" / "an4_test.transcription").open("a") as file:
        file.write("NOT IN THE LIST (an9-mjgm-b)\nno id\n")
    data = prepared(["data=an4", f"data.root={tmp_path}", "data.split.val=34", *QUIET])
    assert [len(data.corpus.splits[split]) for split in ("train", "val", "test")] == [6, 3, 3]
    assert texts(data, "test") == ["GO", "P I T T S", "YES"]
    assert len(speakers(data, "train") | speakers(data, "val")) == 3
    assert "'an9-mjgm-b' is not in an4_test.fileids" in caplog.text
    assert "an4_test.transcription:5: must be '<s> TEXT </s> (id)', received 'no id'" in caplog.text


def test_kaldi_segments_are_parts_of_their_recordings(tmp_path: Path) -> None:
    data = prepared(["data=kaldi", f"data.root={corpora.kaldi(tmp_path)}", "data.split.test=34", *QUIET])
    assert [len(data.corpus.splits[split]) for split in ("train", "test")] == [4, 2]
    assert len(speakers(data, "train")) == 2
    for cut in data.corpus.splits["train"]:
        np.testing.assert_allclose(read_audio(cut, 16000), corpora.tones(cut.text)[: cut.num_samples], atol=1e-4)


def test_rows_of_common_voice_with_more_or_fewer_fields_than_the_header_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = corpora.common_voice(tmp_path)
    path = root / "cy" / "train.tsv"
    header, first, second, *rest = path.read_text(encoding="utf-8").splitlines()
    broken = [first.replace("\t", "\tx\t", 1), second.rpartition("\t")[0]]
    path.write_text("\n".join([header, *broken, *rest]), encoding="utf-8")
    prepared(["data=common_voice", f"data.root={root}", "data.language=cy", *QUIET])
    columns = header.count("\t") + 1
    assert f"train.tsv:2: has {columns + 1} fields, and the header names {columns} columns, received" in caplog.text
    assert f"train.tsv:3: has {columns - 1} fields, and the header names {columns} columns, received" in caplog.text


def test_transcripts_may_part_ids_by_tabs(tmp_path: Path) -> None:
    root = corpora.librispeech(tmp_path, ("dev-clean",))
    for path in root.rglob("*.trans.txt"):
        path.write_text(re.sub(r"(?m)^(\S+) ", r"\1\t ", path.read_text()).replace("\t ", "\t", 1))
    found = LibriSpeech(str(root), ["dev-clean"], [], []).load(None)
    assert len(found.splits["train"]) == 8
    assert not found.skipped


def test_kaldis_channels_are_heard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = corpora.kaldi(tmp_path)
    for name in ("ann", "bob"):
        samples, rate = soundfile.read(root / "audio" / f"{name}.wav", dtype="float32")
        soundfile.write(root / "audio" / f"{name}.wav", np.stack([0 * samples, samples], axis=1), rate, subtype="FLOAT")
    (root / "train" / "reco2file_and_channel").write_text("ann ann B\nbob bob 2\ncyd cyd C\n")
    data = prepared(["data=kaldi", f"data.root={root}", *QUIET])
    assert [(cut.id, cut.channel) for cut in data.corpus.splits["train"]] == [("ann-0", 1), ("ann-1", 1), ("bob-0", 1), ("bob-1", 1)]
    for cut in data.corpus.splits["train"]:
        np.testing.assert_allclose(read_audio(cut, 16000), corpora.tones(cut.text)[: cut.num_samples], atol=1e-4)
    assert "reco2file_and_channel:3: must be 'recording file channel' with a channel of A, B, 1 or 2, received 'cyd C'" in caplog.text
    assert "several channels" not in caplog.text


def test_the_fifth_field_of_kaldis_segments_is_a_channel_and_parts_of_empty_texts_are_read(tmp_path: Path) -> None:
    root = corpora.kaldi(tmp_path)
    path = root / "train" / "segments"
    path.write_text("".join(f"{line} {number % 2}\n" for number, line in enumerate(path.read_text().splitlines())))
    (root / "train" / "text").write_text("".join(f"{name}-{number}\n" for name in ("ann", "bob", "cyd") for number in (0, 1)))
    found = Kaldi(str(root), "train", None, None, {"by": "speaker", "val": 0, "test": 0, "seed": 0}).load(None)
    assert [skip.cut.channel for skip in found.skipped if skip.cut is not None] == [0, 1] * 3


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("segments", "x-0 ann 0.5", "must be 'utterance recording start end', and a channel if need be, received 'x-0 ann 0.5'"),
        ("segments", "x-0 ann 0.1 0.2 B", "the fifth field is a channel, 0 or 1, received 'B'"),
        ("segments", "x-0 ann 0.5 one", "with times in seconds"),
        ("segments", "x-0 dan 0.5 1.0", "recording 'dan' is not in wav.scp"),
        ("segments", "x-0 ann 0.5 90.0", "lies from 0.5 to 90 s, but ann.wav lasts"),
        ("segments", "x-0 ann 0.5 1.0", "'x-0' is not in text"),
        ("text", "ann-0", "its text is empty"),
        ("wav.scp", "ann sph2pipe -f wav ann.sph |", "gives a command, which is not run: 'sph2pipe -f wav ann.sph |'"),
    ],
)
def test_a_wrong_line_of_kaldis_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, line: str, message: str) -> None:
    path = corpora.kaldi(tmp_path) / "train" / file
    name = line.split()[0]
    kept = [each for each in path.read_text().splitlines() if each.split()[0] != name]
    path.write_text("\n".join([*kept, line]) + "\n")
    if file != "text":
        with (tmp_path / "train" / "text").open("a") as other:
            other.write("x-0 HELLO\n" if "not in text" not in message else "")
    prepared(["data=kaldi", f"data.root={tmp_path}", *QUIET])
    assert message in caplog.text
    assert f"{tmp_path / 'train'}/" in caplog.text


def test_a_corpus_is_fetched_checked_unpacked_and_marked(tmp_path: Path, served, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    corpora.librispeech(tmp_path / "there", ("dev-clean",))
    mirror, packed = served(tmp_path / "there" / "LibriSpeech", "dev-clean.tar.gz")
    monkeypatch.setitem(LibriSpeech.released, "dev-clean", (f"sha256:{hashlib.sha256(packed).hexdigest()}", 0.1))  # type: ignore[index]
    here = tmp_path / "here"
    source = LibriSpeech(str(here), ["dev-clean"], [], [], download=True, mirror=mirror)
    assert len(source.load(None).splits["train"]) == 8
    assert sorted(path.name for path in here.iterdir()) == [".dev-clean.tar.gz.complete", "LibriSpeech"]
    again = LibriSpeech(str(here), ["dev-clean"], [], [], download=True, mirror="http://127.0.0.1:1/nobody")
    assert len(again.load(None).splits["train"]) == 8


def test_an_archive_that_is_not_what_was_published_is_refused(tmp_path: Path, served) -> None:  # type: ignore[no-untyped-def]
    corpora.librispeech(tmp_path / "there", ("dev-clean",))
    mirror, _ = served(tmp_path / "there" / "LibriSpeech", "dev-clean.tar.gz")
    source = LibriSpeech(str(tmp_path / "here"), ["dev-clean"], [], [], download=True, mirror=mirror)
    with pytest.raises(DataError, match=r"dev-clean\.tar\.gz: sha256 is .*, published is 76f87d0906"):
        source.load(None)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    source = MiniLibriSpeech(str(tmp_path / "here"), ["train-clean-5"], [], [], download=True, mirror="http://127.0.0.1:1")
    with pytest.raises(DataError, match=r"(?s)train-clean-5\.tar\.gz: could not be fetched from http://127\.0\.0\.1:1.*or put http"):
        source.load(None)


def test_without_leave_to_fetch_both_ways_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)data\.root: no such folder.*or data\.download=true to fetch it there"):
        compose(["data=librispeech", f"data.root={tmp_path / 'none'}"])
    with pytest.raises(
        DataError, match=r"(?s)'dev-clean' of LibriSpeech is not there.*set data\.root.*or data\.download=true .*\(0\.3 GB\)"
    ):
        LibriSpeech(str(tmp_path), ["dev-clean"], [], []).load(None)
    with pytest.raises(DataError, match=r"TIMIT is not there(?s:.*)Linguistic Data Consortium"):
        Timit(str(tmp_path)).load(None)
    with pytest.raises(DataError, match=r"'train' of AN4 is not there"):
        An4(str(tmp_path)).load(None)


@pytest.mark.parametrize("file", ["segments", "utt2spk", "text"])
def test_a_pipe_in_place_of_a_file_of_kaldis_is_refused(tmp_path: Path, file: str) -> None:
    path = corpora.kaldi(tmp_path) / "train" / file
    path.unlink(missing_ok=True)
    os.mkfifo(path)

    with pytest.raises(DataError, match=f"{file}: cannot be read"):
        prepared(["data=kaldi", f"data.root={tmp_path}", *QUIET])
