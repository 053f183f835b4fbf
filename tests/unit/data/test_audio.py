"""One way to read recordings: the same samples whole, in parts and in blocks."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fuzzing import peak_megabytes, refused

from speechtrain.data import audio
from speechtrain.data.audio import Audio, RecordingReader, from_samples, read_recording, resample
from speechtrain.data.corpus import make_cut, read_audio, read_header
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
    with pytest.raises(DataError, match="is at 1 Hz; recordings from 1000 to 768000 Hz can be read"):
        from_samples([0.0], 1, 16000)


def wav_of(rate: int, channels: int = 1, frames: int = 16_000, stated: int | None = None) -> bytes:
    """A WAV file of 16-bit noise, whose header states a number of bytes."""
    samples = (3000 * np.random.default_rng(0).standard_normal(frames * channels)).astype("<i2").tobytes()
    size = len(samples) if stated is None else stated
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, 2 * channels * rate % 2**32, 2 * channels, 16)
    return b"RIFF" + struct.pack("<I", (36 + size) % 2**32) + b"WAVE" + layout + b"data" + struct.pack("<I", size) + samples


@pytest.mark.parametrize("rate", [1000, 8001, 22254, 44101, 96001, 192_000, 767_999])
def test_any_plausible_rate_takes_no_more_memory_than_its_samples(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_of(rate))
    samples, peak = peak_megabytes(lambda: read_recording(path, 16_000))
    assert abs(len(samples) - 16_000 * 16_000 / rate) <= 1
    assert peak < 20


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 999_983, 2_000_000_011])
def test_rates_that_no_recording_has_are_refused_in_headers_and_in_samples(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_of(rate))
    message = refused(lambda: read_recording(path, 16_000), rate)
    assert rate == 0 or f"a.wav: is at {rate} Hz; recordings from 1000 to 768000 Hz can be read" in message
    assert refused(lambda: list(RecordingReader(path, 16_000).blocks()), rate) == message
    refused(lambda: read_header(path, None), rate)


def test_a_header_of_more_samples_than_the_file_holds_takes_no_memory_for_them(tmp_path: Path) -> None:
    flac = tmp_path / "long.flac"
    soundfile.write(flac, noise(16_000), 16_000)
    content = bytearray(flac.read_bytes())
    content[21] |= 0x0F  # the upper four bits of the 36 that count the samples in STREAMINFO
    content[22:26] = b"\xff\xff\xff\xff"
    flac.write_bytes(content)
    wav = tmp_path / "long.wav"
    wav.write_bytes(wav_of(16_000, stated=2**31 - 1))
    samples, peak = peak_megabytes(lambda: read_recording(wav, 16_000))
    assert (len(samples), peak < 20) == (16_000, True)
    message, peak = peak_megabytes(lambda: refused(lambda: read_recording(flac, 16_000), flac))
    assert ("long.flac: cannot be read as audio" in message, peak < 20) == (True, True)
    with pytest.raises(DataError, match=r"has 68719476735 samples; an utterance may have 268435456"):
        make_cut("a", flac, num_samples=read_header(flac, None)[1], sample_rate=16_000, text="a", speaker=None)


def test_a_thousand_channels_are_mixed_block_by_block() -> None:
    content = wav_of(16_000, channels=1000, frames=32_000)
    samples, peak = peak_megabytes(lambda: read_recording(content, 8000))
    assert len(samples) == 16_000
    assert peak < 50  # all channels together are 128 MB
    blocks, peak = peak_megabytes(lambda: np.concatenate(list(RecordingReader(content, 8000).blocks())))
    np.testing.assert_array_equal(blocks, samples)
    assert peak < 50


def test_more_samples_than_are_held_at_once_are_refused_and_still_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MOST_SAMPLES", 10_000)
    content = wav_of(16_000, frames=10_001)
    with pytest.raises(DataError, match="is longer than the 10000 samples that are read at once"):
        read_recording(content, 16_000)
    assert len(read_recording(content, 16_000, duration=10_000 / 16_000)) == 10_000
    assert sum(map(len, RecordingReader(content, 16_000).blocks())) == 10_001
    with pytest.raises(DataError, match="has more than 10000 samples at 48000 Hz"):
        resample(noise(16_000, 0.5)[:, 0], 16_000, 48_000)


def test_a_file_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(wav_of(16_000))
    assert len(read_recording(path, 16_000)) == len(read_recording(str(path), 16_000)) == read_header(path, None)[1] == 16_000


def test_a_recording_may_be_no_longer_than_the_reader_allows_whatever_its_header_says() -> None:
    with pytest.raises(DataError, match="the audio lasts 2 s; 1 s are allowed"):
        RecordingReader(wav_of(8000), 16_000, longest=1.0)
    stream = io.BytesIO(wav_of(8000)[44:])
    with pytest.raises(DataError, match="the audio lasts 2 s; 1 s are allowed"):
        list(RecordingReader(stream, 16_000, raw_rate=8000, longest=1.0).blocks(1.5))


KINDS = ["WAV PCM_16", "WAVEX PCM_24", "WAV FLOAT", "RF64 PCM_16", "W64 PCM_16", "AIFF PCM_16", "AIFF FLOAT", "AU PCM_16", "NIST PCM_16"]
KINDS += ["AU PCM_16 LITTLE", "CAF PCM_16", "SVX PCM_16", "AVR PCM_16"]
KINDS += ["VOC PCM_16", "MAT4 PCM_16", "MAT5 DOUBLE", "MPC2K PCM_16", "WVE ALAW"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_that_is_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.audio"
    container, subtype, *order = kind.split()
    soundfile.write(path, noise(8000, 2.0), 8000, format=container, subtype=subtype, endian=order[0] if order else None)
    whole = path.read_bytes()
    assert read_header(path, None).samples == 16000
    path.write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(DataError, match=r"a\.audio is cut off: its header states (2\.000|1\.99\d) s, and 1\.[78]\d* s are there"):
        read_header(path, None)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_that_does_not_come_to_its_end_is_refused(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, noise(8000, 3.0), 8000, format="OGG", subtype=subtype)
    whole = path.read_bytes()
    last_page = whole.rindex(b"OggS")
    assert read_header(path, None).samples == 24000
    path.write_bytes(whole + b"TAG" + bytes(125))
    assert read_header(path, None).samples == 24000
    for end in (last_page, last_page + 5, last_page + 20, last_page + 28, len(whole) - 7):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"a\.ogg is cut off: the end of its Ogg stream is missing"):
            read_header(path, None)


def test_an_alac_file_without_its_last_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.caf"
    soundfile.write(path, noise(8000, 2.0), 8000, format="CAF", subtype="ALAC_16")
    assert read_header(path, None).samples == 16000
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"a\.caf is cut off"):
        read_header(path, None)


def test_a_recording_whose_last_chunk_beside_the_audio_is_cut_off_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(8000, 1.0), 8000)
    path.write_bytes(path.read_bytes() + b"LIST" + (1 << 20).to_bytes(4, "little") + bytes(100))
    assert read_header(path, None).samples == 8000


@pytest.mark.parametrize("kind", ["WAV PCM_16", "WAVEX PCM_24", "WAV FLOAT"])
def test_a_wav_file_that_is_cut_off_is_refused_unless_its_header_states_no_length(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.wav"
    container, subtype = kind.split()
    soundfile.write(path, noise(8000, 2.0), 8000, format=container, subtype=subtype)
    whole = path.read_bytes()
    assert read_header(path, None).samples == 16000
    path.write_bytes(whole[:-40])  # 25 ms at most
    assert read_header(path, None).samples > 15900
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.wav is cut off: its header states 2\.000 s, and 0\.99\d s are there"):
        read_header(path, None)
    place = whole.index(b"data") + 4
    path.write_bytes(whole[:place] + b"\xff" * 4 + whole[place + 4 :])
    assert read_header(path, None).samples == 16000


def mp3(path: Path, seconds: float, rate: int = 16000) -> bytes:
    """Write an MP3 file of variable bit rate. Returns its content without the header that says how long it is."""
    times = np.arange(round(seconds * rate)) / rate
    bursts = 0.3 * np.sin(2 * np.pi * 300 * times) * (times % 0.5 < 0.1) + 2 * noise(rate, seconds)[:, 0] * (times % 1.3 < 0.1)
    soundfile.write(path, bursts, rate)
    content = path.read_bytes()
    sync = content[content.index(b"\xff") :][:2]
    head = content.index(sync)
    assert content[head + 13 : head + 17] in (b"Xing", b"Info")
    return content[content.index(sync, head + 4) :]


def test_mp3_files_without_a_header_that_says_how_long_they_are_and_joined_ones_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    bare = mp3(path, 6.0)
    whole = path.read_bytes()
    good = read_recording(path, 16000)
    assert len(good) == 96000
    path.write_bytes(bare)
    frames = read_header(path, None)[1]
    assert 96000 <= frames <= 96000 + 3 * 576
    samples = read_recording(path, 16000)
    assert len(samples) == frames
    shift = int(np.argmax(np.correlate(samples[: 16000 + 2000], good[:16000])))
    np.testing.assert_allclose(samples[shift : shift + 90000], good[:90000], atol=1e-4)
    for second in (whole, b"ID3\x04\0\0\0\0\0\x06garble" + bare):
        path.write_bytes(whole + second)
        assert 192000 <= len(read_recording(path, 16000)) <= 192000 + 2 * 3 * 576
        assert sum(map(len, RecordingReader(path, 16000).blocks())) == len(read_recording(path.read_bytes(), 16000))


def test_parts_and_blocks_of_an_mp3_file_are_those_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    mp3(path, 6.0, 8000)
    whole = read_recording(path, 8000)
    for start in np.arange(0.5, 4.5, 0.125):
        np.testing.assert_allclose(read_recording(path, 8000, start=start, duration=1.5), whole[round(start * 8000) :][:12000], atol=1e-4)
    np.testing.assert_array_equal(np.concatenate(list(RecordingReader(path, 8000).blocks(0.3))), whole)


def test_joined_mp3_files_of_other_rates_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    mp3(path, 1.0, 8000)
    second = path.read_bytes()
    mp3(path, 1.0, 16000)
    path.write_bytes(path.read_bytes() + second)
    with pytest.raises(DataError, match=r"a\.mp3: goes on at 8000 Hz in one channel where it began at 16000 Hz in one channel"):
        read_recording(path, 16000)
