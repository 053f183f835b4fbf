"""Headers that are read without libsndfile say what libsndfile says, or nothing."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechtrain.data.audio import RATES, open_recording
from speechtrain.data.headers import Header, plain_header
from speechtrain.data.truncation import check_whole
from speechtrain.errors import DataError

FORMATS = {
    "mono.flac": (1, 16000, "PCM_16"),
    "stereo.flac": (2, 44100, "PCM_24"),
    "mono.wav": (1, 8000, "PCM_16"),
    "stereo.wav": (2, 48000, "PCM_16"),
}


def by_libsndfile(path: Path) -> Header | None:
    """Open the file; None: it is refused."""
    try:
        with open_recording(path, path.name) as file:
            check_whole(file, path, path.name)
            return Header(file.samplerate, file.frames, file.channels)
    except DataError:
        return None


def written(folder: Path, name: str) -> Path:
    channels, rate, subtype = FORMATS[name]
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (700, channels))
    soundfile.write(folder / name, samples, rate, subtype=subtype)
    return folder / name


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_file_has_the_header_that_libsndfile_reads(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    assert plain_header(path) == by_libsndfile(path) == (FORMATS[name][1], 700, FORMATS[name][0])


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_has_the_header_that_libsndfile_reads_or_none(tmp_path: Path, name: str) -> None:
    whole = written(tmp_path, name).read_bytes()
    rng, compared = random.Random(0), 0
    for _ in range(250):
        content = bytearray(whole)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        for _ in range(rng.choice((1, 1, 2, 4))):
            if content:
                content[rng.randrange(min(len(content), rng.choice((12, 44, 300))))] = rng.choice((0, 1, 255, rng.randrange(256)))
        path = tmp_path / "damaged"
        path.write_bytes(content)
        header = plain_header(path)
        if header is not None and RATES[0] <= header.rate <= RATES[1]:
            compared += 1
            assert header == by_libsndfile(path), bytes(content[:60])
    assert compared > 10


def test_other_files_are_left_to_libsndfile(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "float.wav", np.zeros(100), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "a.ogg", np.zeros(1000), 8000)
    (tmp_path / "empty.wav").touch()
    os.mkfifo(tmp_path / "pipe.wav")
    names = ("float.wav", "a.ogg", "empty.wav", "pipe.wav", "absent.flac", "a\0.flac", ".")
    assert [plain_header(tmp_path / name) for name in names] == [None] * len(names)
