"""The cache of spectra on disk: computed once, shared, never wrong, bounded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from conftest import prepared

from speechtrain.data.features.store import SpectrumStore
from speechtrain.data.task_data import TaskData

QUIET = ["tracking=[]", "report.enabled=false", "features=logmel_8k", "backend.threads=1", "augment=none"]


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., TaskData]:
    corpora.librispeech(tmp_path)

    def run(*more: str) -> TaskData:
        return prepared(["data=mini_librispeech", f"data.root={tmp_path}", f"data.feature_cache={tmp_path / 'cache'}", *QUIET, *more])

    return run


def batches(data: TaskData) -> list[np.ndarray]:
    loader = data.loader("train")
    assert loader is not None
    return [batch.features for batch in loader]


def packs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/*.bin"))


def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, *arguments: object, **options: object) -> None:
        raise AssertionError("audio was decoded")

    monkeypatch.setattr("speechtrain.data.corpus.read_recording", refuse)


def test_what_was_computed_once_is_not_computed_again(tmp_path: Path, prepare, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    without = prepare("data.feature_cache=null")
    first = prepare()
    no_decoder(monkeypatch)
    second = prepare()
    other_bands = prepare("features.n_mels=20")
    for one, two, three in zip(batches(without), batches(first), batches(second), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
    assert batches(other_bands)[0].shape[2] == 20
    assert without.fingerprint("train") == first.fingerprint("train") == second.fingerprint("train")


def test_the_key_is_the_content_and_not_the_name(tmp_path: Path, prepare, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    prepare()
    shutil.copytree(tmp_path / "LibriSpeech", tmp_path / "moved" / "LibriSpeech")
    no_decoder(monkeypatch)
    assert len(prepare(f"data.root={tmp_path / 'moved'}").corpus.splits["train"]) == 8
    monkeypatch.undo()
    changed = tmp_path / "LibriSpeech" / "train-clean-5" / "100" / "7" / "100-7-0000.flac"
    before = prepare()
    corpora.write(changed, corpora.SENTENCES[0][::-1])  # as long as before
    after = prepare()
    assert before.fingerprint("train") != after.fingerprint("train")


def test_other_windows_and_rates_are_kept_apart(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    prepare()
    prepare("features.window=0.05")
    prepare("features.sample_rate=16000")
    assert len({path.parent for path in packs(tmp_path)}) == 3


def test_spectra_of_the_store_need_no_room_in_memory(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    data = prepare("data.cache_gb=0")
    assert all(data.cache._packed[cut.id].untyped_storage().nbytes() > 0 for cut in data.corpus.splits["train"])
    found = data.cache.spectrum(next(iter(data.corpus.splits["train"])))
    found.zero_()
    assert data.cache.spectrum(next(iter(data.corpus.splits["train"]))).abs().sum() > 0


def test_a_file_that_cannot_be_decoded_is_named_each_time(tmp_path: Path, prepare, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "LibriSpeech" / "train-clean-5" / "100" / "7" / "100-7-0000.flac"
    path.write_bytes(path.read_bytes()[:600])  # the header is whole
    for _ in range(2):
        caplog.clear()
        assert prepare().skipped == 1
        assert str(path) in caplog.text


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_believed(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    program = f"""
import os, torch
from pathlib import Path
from speechtrain.data.features.store import SpectrumStore
store = SpectrumStore(Path({str(tmp_path / "cache")!r}), "x", 1)
with store.writing() as writer:
    writer.add("whole", torch.ones(3, 4).half(), 7)
    writer.close()
    writer.add("half", torch.ones(3, 4).half(), 8)
    writer._file.flush()
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == -9
    store = SpectrumStore(tmp_path / "cache", "x", 1)
    whole = store.get("whole")
    assert whole is not None
    assert whole.checksum == 7
    assert torch.equal(whole.packed, torch.ones(3, 4).half())
    assert store.get("half") is None
    with store.writing():
        pass
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_pack_that_was_cut_short_is_not_used(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    wanted = batches(prepare())
    for path in packs(tmp_path):
        os.truncate(path, path.stat().st_size - 64)
    for path in (tmp_path / "cache").glob("*/*.json"):
        assert json.loads(path.read_text())["entries"]
    for one, two in zip(wanted, batches(prepare()), strict=True):
        np.testing.assert_array_equal(one, two)


def test_two_that_start_at_once_do_the_work_once(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    command = [sys.executable, "-c", "import sys; from conftest import prepared; prepared(sys.argv[1:])", "data=mini_librispeech"]
    command += [f"data.root={tmp_path}", f"data.feature_cache={tmp_path / 'cache'}", *QUIET]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [each.wait(timeout=120) for each in both] == [0, 0]
    entries = [key for path in (tmp_path / "cache").glob("*/*.json") for key in json.loads(path.read_text())["entries"]]
    assert len(entries) == len(set(entries)) == 4 + 4 - 4  # both speakers of both parts say the same: the content is what counts


def test_what_was_used_least_recently_makes_room(tmp_path: Path) -> None:
    def store(name: str) -> SpectrumStore:
        return SpectrumStore(tmp_path, name, 3e-6)  # 3,000 bytes

    for age, name in ((300, "a"), (200, "b")):
        with store(name).writing() as writer:
            writer.add(name, torch.ones(10, 50).half(), 0)
        for path in tmp_path.glob("*/*.json"):
            os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    a = store("a")
    assert a.get("a") is not None  # used now, and so newer than b
    with store("c").writing() as writer:
        writer.add("c", torch.ones(10, 80).half(), 0)
    assert store("b").get("b") is None
    assert store("a").get("a") is not None
    assert store("c").get("c") is not None


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / "project" / name for name in ("weights.bin", "part.bin.tmp", "config.json", "config.bin", f"{'0' * 32}.bin")]
    others += [tmp_path / ("0" * 16) / name for name in ("weights.bin", "notes.tmp.txt", "a.json", "a.bin")]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
    with SpectrumStore(tmp_path, "a", 1e-9).writing() as writer:
        writer.add("a", torch.ones(10, 50).half(), 0)
    assert [path for path in others if not path.is_file()] == []
    assert not list(tmp_path.glob("*/*.json.tmp"))


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, prepare, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    data = prepare(f"data.feature_cache={tmp_path / 'file'}")
    assert len(data.corpus.splits["train"]) == 8
    assert "cannot be written" in caplog.text
