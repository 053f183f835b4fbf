"""One way to read recordings: the same samples whole, in parts and in blocks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechtrain.data.audio import Audio, RecordingReader, from_samples, read_recording, resample
from speechtrain.data.corpus import make_cut, read_audio
from speechtrain.errors import DataError

RATES = [8000, 11025, 22050, 44100, 48000]


def noise(rate: int, seconds: float = 1.3, channels: int = 1) -> Audio:
    samples = 0.1 * np.random.default_rng(rate).standard_normal((round(seconds * rate), channels))
    return samples.astype(np.float32)


@pytest.mark.parametrize("rate", RATES)
def test_whole_files_blocks_contents_streams_samples_and_cuts_give_the_same_samples(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    samples = noise(rate, channels=2)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    whole = read_recording(path, 16000)
    assert abs(len(whole) - 1.3 * 16000) <= 1
    cut = make_cut("a", path, num_samples=len(samples), sample_rate=rate, text="", speaker=None)
    others = [read_recording(path.read_bytes(), 16000), from_samples(samples, rate, 16000), read_audio(cut, 16000)]
    others += [np.concatenate(list(RecordingReader(path, 16000).blocks(seconds))) for seconds in (0.01, 0.37, 10)]
    with path.open("rb") as stream:
        others.append(np.concatenate(list(RecordingReader(stream, 16000).blocks(0.2))))
    for other in others:
        assert other.dtype == np.float32
        np.testing.assert_array_equal(other, whole)


def test_a_part_is_cut_before_it_is_resampled(tmp_path: Path) -> None:
    samples = noise(48000)
    soundfile.write(tmp_path / "a.wav", samples, 48000, subtype="FLOAT")
    part = read_recording(tmp_path / "a.wav", 16000, start=0.25, duration=0.5)
    np.testing.assert_array_equal(part, from_samples(samples[12000:36000], 48000, 16000))
    np.testing.assert_array_equal(read_recording(tmp_path / "a.wav", 48000, start=1.0), samples[48000:, 0])


def test_channels_are_averaged_unless_one_is_named(tmp_path: Path) -> None:
    samples = noise(16000, channels=2)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_recording(tmp_path / "a.wav", 16000), samples.mean(axis=1))
    np.testing.assert_array_equal(read_recording(tmp_path / "a.wav", 16000, channel=1), samples[:, 1])
    with pytest.raises(DataError, match=r"a\.wav: has 2 channels, and channel 2, counted from 0, is asked for"):
        read_recording(tmp_path / "a.wav", 16000, channel=2)


def test_raw_samples_come_in_blocks_that_may_end_between_two_bytes() -> None:
    values = (noise(8000)[:, 0] * 32767).astype("<i2")

    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 37))

    blocks = RecordingReader(Dribble(values.tobytes()), 16000, raw_rate=8000).blocks(1.0)
    np.testing.assert_array_equal(np.concatenate(list(blocks)), resample(values.astype(np.float32) / np.float32(32768), 8000, 16000))


def test_a_part_may_end_a_little_after_its_recording_and_not_more(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(16000, 1.0), 16000, subtype="FLOAT")
    assert len(read_recording(tmp_path / "a.wav", 16000, start=0.5, duration=0.52)) == 8320
    with pytest.raises(DataError, match=r"a\.wav: ends at 1\.000 s, before 1\.100 s"):
        read_recording(tmp_path / "a.wav", 16000, start=0.5, duration=0.6)


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    bad, empty, broken = tmp_path / "bad.wav", tmp_path / "empty.wav", tmp_path / "nan.wav"
    bad.write_bytes(b"no audio at all")
    soundfile.write(empty, np.zeros(0), 8000)
    values = noise(8000)
    values[4000:4002] = np.nan
    soundfile.write(broken, values, 8000, subtype="FLOAT")
    faults = {
        bad: r"bad\.wav: cannot be read as audio \(Format not recognised\); WAV, FLAC",
        empty: r"empty\.wav: holds no samples",
        broken: r"nan\.wav: holds 2 samples that are NaN or infinite, the first at 0\.500 s",
        tmp_path / "none.wav": r"no such file: .*none\.wav",
    }
    for path, message in faults.items():
        with pytest.raises(DataError, match=message):
            read_recording(path, 16000)
        with pytest.raises(DataError, match=message):
            list(RecordingReader(path, 16000).blocks(0.1))
    with pytest.raises(DataError, match=r"the audio: cannot be read as audio"):
        read_recording(b"no audio at all", 16000)
    for values_of, message in [([[[0.0]]], "has the shape"), (["a"], "is no array of numbers"), ([], "holds no samples")]:
        with pytest.raises(DataError, match=message):
            from_samples(values_of, 8000, 8000)
    with pytest.raises(DataError, match="audio at 1 Hz cannot be resampled; rates from 1000 to 1000000 Hz can"):
        from_samples([0.0], 1, 16000)
