"""Lhotse's cuts and Hugging Face's data sets, written by those libraries themselves."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import corpora
import datasets
import numpy as np
import pytest
import soundfile
from conftest import prepared
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from speechtrain.data.task_data import TaskData
from speechtrain.errors import DataError

QUIET = ["tracking=[]", "report.enabled=false", "features=logmel_8k", "backend.threads=1"]


def cuts_of(root: Path) -> CutSet:
    """Six recordings of two sentences each, by three speakers."""
    found = []
    for index in range(6):
        texts = corpora.SENTENCES[index % 2 :: 2]
        path = corpora.write(root / "audio" / f"r{index}.flac", "".join(texts))
        recording = Recording.from_file(path, recording_id=f"r{index}")
        middle = 0.06 * len(texts[0])
        times = ((texts[0], 0.0, middle), (texts[1], middle, 0.06 * len(texts[1])))
        segments = [
            SupervisionSegment(f"r{index}-{part}", f"r{index}", round(start, 4), round(length, 4), text=text, speaker=f"s{index % 3}")
            for part, (text, start, length) in enumerate(times)
        ]
        found.append(MonoCut(f"c{index}", 0.0, recording.duration, 0, recording=recording, supervisions=segments))
    return CutSet.from_cuts(found)


def heard(data: TaskData, split: str = "train") -> None:
    """Every utterance's samples are the tones that spell its text."""
    for cut in data.corpus.splits[split]:
        wanted = corpora.tones(cut.text, 16000)
        np.testing.assert_allclose(data.corpus.read(cut, 16000)[: len(wanted) - 2], wanted[: cut.num_samples][: len(wanted) - 2], atol=1e-4)


def test_lhotses_cuts_give_an_utterance_a_supervision(tmp_path: Path) -> None:
    cuts_of(tmp_path).to_file(tmp_path / "cuts.jsonl.gz")
    data = prepared(["data=lhotse", f"data.root={tmp_path}", "data.train=cuts.jsonl.gz", "data.split.val=34", *QUIET])
    assert [len(data.corpus.splits[split]) for split in ("train", "val")] == [8, 4]
    assert len({cut.speaker for cut in data.corpus.splits["val"]}) == 1
    heard(data)


def test_shar_is_read_from_inside_its_tar_files(tmp_path: Path) -> None:
    cuts = cuts_of(tmp_path / "source").trim_to_supervisions()
    (tmp_path / "shar").mkdir()
    cuts.to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=5)
    for path in (tmp_path / "source" / "audio").iterdir():
        path.unlink()
    data = prepared(["data=lhotse", f"data.root={tmp_path}", "data.train=shar", "data.num_workers=1", *QUIET])
    assert len(data.corpus.splits["train"]) == 12
    heard(data)
    loader = data.loader("train")
    assert loader is not None
    assert sum(len(batch.ids) for batch in loader) == 12


def test_what_lhotse_cannot_give_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cuts = list(cuts_of(tmp_path))
    cuts[0].supervisions = []
    cuts[1].supervisions[0].text = " "
    cuts[3].recording.sources[0].type, cuts[3].recording.sources[0].source = "command", "touch evil"
    (tmp_path / "audio" / "r2.flac").unlink()
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    given = ["data=lhotse", f"data.root={tmp_path}", *QUIET]
    data = prepared([*given, "data.train=cuts.jsonl.gz"])
    assert len(data.corpus.splits["train"]) == 4
    assert "cuts.jsonl.gz:4: its audio comes from a source of type 'command', which is not read" in caplog.text
    assert not Path("evil").exists()
    for message in ("c0: has no supervision", "c1: its text is empty", f": no such file: {tmp_path / 'audio' / 'r2.flac'}"):
        assert message in caplog.text
    (tmp_path / "bad.jsonl").write_text("{this is not\n")
    with pytest.raises(DataError, match=r"bad\.jsonl: holds no cut that can be used; the first: .*bad\.jsonl:1: not JSON"):
        prepared([*given, "data.train=bad.jsonl"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="holds 0 lists of cuts and 0 tar files"):
        prepared([*given, "data.train=folder"])


def table(count: int = 6) -> datasets.Dataset:
    """Rows with encoded audio inside, of three speakers."""
    rows = []
    for index in range(count):
        text = corpora.SENTENCES[index % 4]
        file = io.BytesIO()
        soundfile.write(file, corpora.tones(text), 16000, format="FLAC")
        rows.append({"audio": {"bytes": file.getvalue(), "path": None}, "sentence": text, "who": index % 3, "name": f"row{index}"})
    return encoded(rows)


def encoded(rows: list[dict[str, object]]) -> datasets.Dataset:
    """With the bytes of files in its column of audio, as data sets on the hub have it."""
    blob = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    values = {"audio": blob, "sentence": datasets.Value("string"), "who": datasets.Value("int64"), "name": datasets.Value("string")}
    return datasets.Dataset.from_list(rows, features=datasets.Features(values)).cast_column("audio", datasets.Audio(decode=False))


def test_a_data_set_on_disk_is_read_row_by_row(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table(), "validation": table(3)}).save_to_disk(tmp_path / "both")
    given = ["data=huggingface", f"data.root={tmp_path / 'both'}", "data.text=sentence", "data.speaker=who", *QUIET]
    data = prepared([*given, "data.val=validation", "data.num_workers=1"])
    assert [len(data.corpus.splits[split]) for split in ("train", "val", "test")] == [6, 3, 0]
    heard(data)
    loader = data.loader("train")
    assert loader is not None
    assert sum(len(batch.ids) for batch in loader) == 6
    table().save_to_disk(tmp_path / "one")
    one = prepared([*given[:1], f"data.root={tmp_path / 'one'}", *given[2:], "data.id=name", "data.split.by=speaker", "data.split.test=34"])
    assert sorted(cut.id for cut in one.corpus.splits["test"]) in (["row0", "row3"], ["row1", "row4"], ["row2", "row5"])


def test_a_data_set_that_does_not_fit_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = ["data=huggingface", f"data.root={tmp_path / 'set'}", *QUIET]
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="is not a data set on disk"):
        prepared(given)
    bad = table(4).to_list()
    bad[1]["audio"] = {"bytes": b"no audio at all", "path": None}
    bad[2]["sentence"] = ""
    datasets.DatasetDict({"train": encoded(bad)}).save_to_disk(tmp_path / "rows")
    with pytest.raises(DataError, match=r"has no column 'text'; there is: audio, sentence, who, name(?s:.*)set data\.text"):
        prepared([given[0], f"data.root={tmp_path / 'rows'}", *QUIET])
    with pytest.raises(DataError, match=r"has no split 'dev'; there is: train"):
        prepared([given[0], f"data.root={tmp_path / 'rows'}", "data.text=sentence", "data.val=dev", *QUIET])
    with pytest.raises(DataError, match=r"column 'name' holds Value\('string'\), not audio"):
        prepared([given[0], f"data.root={tmp_path / 'rows'}", "data.text=sentence", "data.audio=name", *QUIET])
    data = prepared([given[0], f"data.root={tmp_path / 'rows'}", "data.text=sentence", *QUIET])
    assert len(data.corpus.splits["train"]) == 2
    assert "train row 1: its audio: cannot be read as audio" in caplog.text
    assert "train row 2: its text is empty" in caplog.text


def test_a_bad_line_of_lhotses_is_named_and_the_others_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cuts.jsonl"
    cuts_of(tmp_path).trim_to_supervisions().to_file(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    faults: list[tuple[dict[str, Any], str]] = [
        ({"duration": "x"}, "'duration' must be a number of seconds, received 'x'"),
        ({"duration": None}, "'duration' must be a number of seconds, received None"),
        ({"duration": -1.0}, "'duration' must be a number of seconds, received -1.0"),
        ({"start": float("nan")}, "'start' must be a number of seconds, received nan"),
        ({"id": "a\nb"}, "line ends or control characters"),
        ({"type": "NoCut"}, "is no cut of Lhotse's"),
    ]
    for line, (change, _) in zip(lines, faults, strict=False):
        line |= change
    lines[6]["recording"]["sampling_rate"] = 999_999_999
    evil = {
        "id": "e",
        "sampling_rate": 16_000,
        "num_samples": 10,
        "duration": 1.0,
        "sources": [{"type": "command", "channels": [0], "source": "touch evil"}],
    }
    lines[7]["recording"]["transforms"] = [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": evil}}]
    lines[8]["recording"]["transforms"] = [{"name": "Resample", "kwargs": {"source_sampling_rate": 44_101, "target_sampling_rate": 16_000}}]
    bad = ["[" * 100_000, "7", r'{"id": "\ud800"}']
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n".join(bad))
    data = prepared(["data=lhotse", f"data.root={tmp_path}", "data.train=cuts.jsonl", *QUIET])
    assert len(data.corpus.splits["train"]) == 3
    for number, (_, reason) in enumerate(faults, start=1):
        assert f"cuts.jsonl:{number}: {reason}" in caplog.text or (number == 5 and reason in caplog.text)
    assert "cuts.jsonl:7: its recording: is at 999999999 Hz" in caplog.text
    assert "cuts.jsonl:8: its audio comes from a source of type 'command'" in caplog.text
    assert not Path("evil").exists()


def test_lhotse_runs_no_command_behind_an_address(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cuts.jsonl"
    cuts_of(tmp_path).trim_to_supervisions().to_file(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    address = {"type": "url", "channels": [0], "source": "pipe:touch evil"}
    reverb = {"id": "e", "sampling_rate": 16_000, "num_samples": 10, "duration": 1.0, "sources": [address]}
    lines[0]["recording"]["sources"] = [address]
    lines[1]["recording"]["transforms"] = [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": reverb}}]
    lines[2]["custom"] = 5
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    data = prepared(["data=lhotse", f"data.root={tmp_path}", "data.train=cuts.jsonl", *QUIET])

    assert not Path("evil").exists()
    assert len(data.corpus.splits["train"]) + len(data.corpus.splits["val"]) + len(data.corpus.splits["test"]) == len(lines) - 3
    for number in (1, 2):
        assert f"cuts.jsonl:{number}: its audio comes from a source of type 'url', which is not read" in caplog.text
    assert "cuts.jsonl:3: 'custom' must be a JSON object, received 5" in caplog.text
