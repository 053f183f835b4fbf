"""A long manifest that was read once is not read again while all files are as they were; what it gives is the same."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import prepared

from speechtrain.data.corpora import manifest
from speechtrain.data.corpora.manifest import Manifest
from speechtrain.data.corpus import Corpus, Cut
from speechtrain.data.table_cache import StoredTable, TableCache
from speechtrain.errors import DataError

SPLIT = {"by": "speaker", "val": 25, "test": 0, "seed": 0}


@pytest.fixture
def root(corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest with good lines, parts of a file, and bad lines."""
    monkeypatch.setattr(manifest, "_WORTH_KEEPING", 1)
    folder = corpus(
        ["seven", "eight", "nine", "grüße", "x", "", "y", "zero"], at_4={"duration": 9.0}, at_6={"audio_filepath": "absent.wav"}
    )
    soundfile.write(folder / "long.flac", np.tile(np.linspace(-0.5, 0.5, 80), 300), 8000)
    parts = [
        {"audio_filepath": "long.flac", "text": "part", "speaker": "p", "offset": offset, "mood": ["calm"]} for offset in (0, 1, 1.0001)
    ]
    with (folder / "train.jsonl").open("a") as lines:
        lines.writelines(json.dumps(part) + "\n" for part in parts)
        lines.write("{not json\n")
    return folder


def load(root: Path, **changes: Any) -> Corpus:
    source = Manifest(**{"root": str(root), "train": "train.jsonl", "val": None, "test": None, "split": SPLIT, **changes})
    source.table_cache = TableCache(root / "kept")
    return source.load(None)


def described(corpus: Corpus) -> tuple[Any, ...]:
    def values(cut: Cut | None) -> Any:
        return cut and tuple(getattr(cut, name) for name in Cut.__slots__)

    skipped = [(skip.split, skip.where, skip.reason, values(skip.cut), skip.is_bad) for skip in corpus.skipped]
    return {name: list(map(values, cuts)) for name, cuts in corpus.splits.items()}, skipped


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the audio files whose headers are read."""
    seen: list[str] = []
    read = manifest.read_header

    def counted(path: Path, rate: int | None) -> Any:
        seen.append(path.name)
        return read(path, rate)

    monkeypatch.setattr(manifest, "read_header", counted)
    return seen


def test_the_second_time_gives_the_same_and_opens_only_what_was_bad(root: Path, reads: list[str]) -> None:
    first = described(load(root))
    assert [skip[2][:20] for skip in first[1]] == [
        "'duration' is 9.0 s,",
        "'text' is empty; dat",
        f"no such file: {root}"[:20],
        "not JSON (Expecting ",
    ]
    assert len(reads) == 9
    del reads[:]
    assert described(load(root)) == first
    assert sorted(set(reads)) == ["absent.wav", "train-4.wav", "train-5.wav"]
    assert len(list((root / "kept").iterdir())) == 1


def test_a_run_has_the_same_batches_from_what_was_kept(root: Path, tmp_path: Path) -> None:
    options = ["data=manifest", f"data.root={root}", f"data.feature_cache={tmp_path}/cache", "data.split.val=25", "features=logmel_8k"]

    def outline() -> tuple[Any, ...]:
        data = prepared([*options, "data.empty_texts=evaluate"])
        train, val = data.loader("train", shuffle=True), data.loader("val")
        return data.fingerprint("train"), data.facts("train"), train.batch_ids(), val.batch_ids(), next(iter(train)).features.tobytes()

    first = outline()
    assert list((tmp_path / "cache" / "lists").glob("*.table"))
    assert outline() == first


@pytest.mark.parametrize(
    "change",
    [
        lambda root: soundfile.write(root / "audio" / "train-0.wav", np.zeros(16000), 8000),
        lambda root: (root / "audio" / "train-1.wav").unlink(),
        lambda root: (
            shutil.copy(root / "audio" / "train-0.wav", root / "audio" / "absent.wav")
            and shutil.move(root / "audio" / "absent.wav", root / "absent.wav")
        ),
        lambda root: (root / "audio" / "train-4.wav").write_bytes(b""),
        lambda root: (root / "train.jsonl").write_text((root / "train.jsonl").read_text().replace("seven", "seven two")),
    ],
    ids=["longer", "gone", "there now", "bad in another way", "another text"],
)
def test_what_has_changed_since_is_noticed(root: Path, change: Callable[[Path], object]) -> None:
    before = described(load(root))
    time.sleep(0.01)  # for a clock of the file system that ticks 100 times a second
    change(root)
    plain = Manifest(str(root), "train.jsonl", None, None, SPLIT)
    assert described(load(root)) == described(plain.load(None)) != before
    assert described(load(root)) == described(plain.load(None))


def test_a_file_of_the_same_size_and_time_but_other_content_is_noticed(root: Path) -> None:
    load(root)
    place = root / "audio" / "train-0.wav"
    status = place.stat()
    time.sleep(0.01)
    other = bytearray(place.read_bytes())
    other[24:28] = (16000).to_bytes(4, "little")  # rate, Hz
    other[28:32] = (32000).to_bytes(4, "little")
    place.write_bytes(other)
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert any("lasts 0.500 s" in skip.reason for skip in load(root).skipped)


@pytest.mark.parametrize("options", [{"sample_rate": 8000}, {"duration_tolerance": 20.0}, {"trust_durations": True, "sample_rate": 8000}])
def test_other_options_have_lists_of_their_own(root: Path, options: dict[str, Any]) -> None:
    load(root)
    kept = described(load(root, **options))
    assert kept == described(Manifest(str(root), "train.jsonl", None, None, SPLIT, **options).load(None))
    assert kept == described(load(root, **options))
    assert len(list((root / "kept").iterdir())) == 2


def test_a_trusted_list_is_taken_without_looking_for_its_files(root: Path) -> None:
    options: dict[str, Any] = {"trust_durations": True, "sample_rate": 8000}
    first = described(load(root, **options))
    shutil.rmtree(root / "audio")
    assert described(load(root, **options)) == first


def test_a_manifest_of_which_nothing_can_be_used_is_refused_each_time(root: Path) -> None:
    (root / "train.jsonl").write_text("{}\n")
    for _ in range(2):
        with pytest.raises(DataError, match="none of its 1 lines can be used"):
            load(root)
    assert not (root / "kept").exists()


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-200], lambda content: b"no table\n", lambda content: b"", lambda content: b"{}\n" + content]
)
def test_a_damaged_list_is_read_again(root: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture) -> None:
    first = described(load(root))
    (place,) = (root / "kept").iterdir()
    whole = place.read_bytes()
    place.write_bytes(damage(whole))
    assert described(load(root)) == first
    assert f"{place} is ignored" in caplog.text
    assert place.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "kept").write_text("a file")
    assert described(load(root)) == described(Manifest(str(root), "train.jsonl", None, None, SPLIT).load(None))
    assert "the lists are read again next time" in caplog.text


def test_tables_that_were_not_used_for_long_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TableCache(tmp_path)
    monkeypatch.setattr("speechtrain.data.table_cache._MOST_BYTES", 3000)
    for number in range(4):
        cache.write(f"{number:032x}", StoredTable(number, {"a": np.arange(125)}))
        os.utime(tmp_path / f"{number:032x}.table", (number, number))
    (tmp_path / "mine.table").write_text("not ours")
    assert cache.read(f"{2:032x}") is not None  # used now
    cache.write(f"{9:032x}", StoredTable(9, {"a": np.arange(125)}))
    assert {path.name for path in tmp_path.iterdir()} == {f"{2:032x}.table", f"{9:032x}.table", "mine.table"}
