"""Transcription of files, of the standard input, of long recordings and of live signals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import TINY
from rapidfuzz.distance import Levenshtein
from use import here

import speechtrain
from speechtrain.errors import ConfigError

Use = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Run `python -m speechtrain.COMMAND ...` in an empty folder."""

    def run(command: str, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", f"speechtrain.{command}", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            input=stdin,
            capture_output=True,
            check=False,
            timeout=300,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


def test_files_are_transcribed_to_the_standard_output(trained: Path, spoken: dict[str, str], use: Use) -> None:
    path, text = next(iter(spoken.items()))
    assert use("transcribe", f"from={trained}", path).stdout == f"{text}\n"
    several = use("transcribe", f"from={trained}", str(Path(path).parent))
    said = dict(line.split("\t") for line in several.stdout.splitlines())
    assert said.keys() == spoken.keys()
    assert sum(said[name] == text for name, text in spoken.items()) >= 7


@pytest.mark.slow
@pytest.mark.cold
def test_the_standard_input_and_samples_without_a_header_are_transcribed(trained: Path, spoken: dict[str, str], use: Use) -> None:
    path, text = next(iter(spoken.items()))
    assert use("transcribe", f"from={trained}", "-", stdin=Path(path).read_bytes()).stdout == f"{text}\n"
    samples, _ = soundfile.read(path, dtype="int16")
    assert use("transcribe", f"from={trained}", "-", "raw_rate=8000", stdin=samples.tobytes()).stdout == f"{text}\n"


def test_each_format_is_written_to_a_file_of_the_recordings_name(
    trained: Path, spoken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = next(iter(spoken.items()))
    endings = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}
    for kind, ending in endings.items():
        assert here("transcribe", f"from={trained}", path, f"format={kind}", "out=texts") == 0
        assert text in (tmp_path / "texts" / f"{Path(path).stem}{ending}").read_text()
    assert sorted(each.suffix for each in (tmp_path / "texts").iterdir()) == sorted(endings.values())
    capsys.readouterr()


def test_a_long_recording_in_windows_has_the_text_of_its_parts(trained: Path, spoken: dict[str, str]) -> None:
    from speechtrain.inference.long_audio import transcribe_long

    model = speechtrain.load(str(trained))
    parts = [model.read(path, None) for path in spoken] * 6
    noise = np.random.default_rng(0).normal(size=2400).astype(np.float32)
    blocks = [np.concatenate([part, noise * part.std() / 10]) for part in parts]
    wanted = "".join(model.transcribe(part).text for part in parts)
    found = list(transcribe_long(model, iter(blocks), window=4.0))
    assert len(found) > 5
    said = "".join(piece.text for piece in found)  # the tokenizer of these letters has no space
    assert Levenshtein.distance(said, wanted) <= 0.02 * len(wanted)
    times = [(word.start, word.end) for piece in found for word in piece.words]
    assert times == sorted(times)
    assert times[-1][1] <= sum(map(len, blocks)) / 8000


def test_other_rates_and_channels_are_heard(trained: Path, spoken: dict[str, str], tmp_path: Path) -> None:
    import torch
    import torchaudio

    from speechtrain.data.audio import RecordingReader

    path, text = next(iter(spoken.items()))
    samples, _ = soundfile.read(path, dtype="float32")
    resampled = torchaudio.functional.resample(torch.from_numpy(samples), 8000, 44100).numpy()
    soundfile.write(tmp_path / "cd.flac", np.stack([resampled, resampled], axis=1), 44100)
    model = speechtrain.load(str(trained))
    recording = RecordingReader(tmp_path / "cd.flac", model.sample_rate)
    heard = np.concatenate(list(recording.blocks(0.3)))
    assert len(heard) == pytest.approx(len(samples), abs=8)
    assert np.corrcoef(heard[: len(samples) - 8], samples[: len(heard[: len(samples) - 8])])[0, 1] > 0.95
    assert model.transcribe(tmp_path / "cd.flac").text == text


def test_what_cannot_be_heard_is_named_and_the_others_are_transcribed(
    trained: Path, spoken: dict[str, str], tmp_path: Path, use: Use
) -> None:
    path, text = next(iter(spoken.items()))
    (tmp_path / "bad.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "phone.m4a").write_bytes(b"\0\0\0\x18ftypM4A ")
    samples, rate = soundfile.read(path)
    soundfile.write(tmp_path / "talks" / "sun.au", samples, rate)
    done = use("transcribe", f"from={trained}", "bad.wav", "empty.wav", path, "talks")
    assert done.returncode == 2
    assert done.stdout == f"{path}\t{text}\ntalks/sun.au\t{text}\n"
    assert "talks/phone.m4a: cannot be read as audio" in done.stderr
    assert "ffmpeg" in done.stderr
    assert "bad.wav: cannot be read as audio" in done.stderr
    assert "empty.wav: holds no samples" in done.stderr
    assert "3 of 5 could not be transcribed" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(ConfigError, match=r"there is no none\.wav"):
        here("transcribe", f"from={trained}", "none.wav")
    with pytest.raises(ConfigError, match="Tdnn needs whole utterances"):
        here("transcribe", f"from={trained}", path, "streaming=true")


def test_other_speech_than_a_model_was_trained_for_is_told(
    trained: Path, spoken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).normal(size=(40, 800)) * np.random.default_rng(1).uniform(0.001, 0.3, (40, 1))
    soundfile.write(tmp_path / "other.wav", noise.ravel().clip(-1, 1), 8000)
    assert here("transcribe", f"from={trained}", *spoken) == 0
    assert "unsure" not in capsys.readouterr().err
    assert here("transcribe", f"from={trained}", *spoken, "other.wav") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"unsure of the words in 1 of {len(spoken) + 1} recordings (least in other.wav, confidence 0." in said
    assert "not what it was trained for: Synthetic, in the tokens 'abcdefgh'" in said


CHUNKS = ["model=conformer", "model.chunk_frames=8", "model.left_chunks=2"]


@pytest.mark.parametrize("model", [["model=lstm"], CHUNKS, [*CHUNKS, "model.train_chunk_frames=[2,8,null]"]])
def test_a_live_signal_has_the_text_of_the_whole(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from speechtrain.inference.streaming import LiveFeatures, check_streams

    plain = ["features.normalize=none", "features.top_db=null"]
    cfg = speechtrain.compose([*TINY, *model, *plain, "trainer.epochs=1", "data.batch_size=8"], output_dir=tmp_path / "live")
    speechtrain.train(cfg)
    loaded = speechtrain.load(str(tmp_path / "live"))
    samples = np.random.default_rng(0).normal(size=24_000).astype(np.float32) * 0.1
    whole = loaded.log_probs(samples)
    stream, live = check_streams(loaded), LiveFeatures(loaded.features)  # type: ignore[arg-type]
    pieces = [stream.push(live.push(samples[begin : begin + 1700])) for begin in range(0, len(samples), 1700)]
    found = np.concatenate([*pieces, stream.push(live.finish()), stream.finish()])
    np.testing.assert_allclose(found, whole, atol=2e-3)
    soundfile.write("live.wav", samples, 8000)
    assert here("transcribe", f"from={tmp_path / 'live'}", "live.wav", "streaming=true") == 0
    if "model.train_chunk_frames=[2,8,null]" in model:  # another of its latencies
        assert here("transcribe", f"from={tmp_path / 'live'}", "live.wav", "streaming=true", "model.chunk_frames=2") == 0
        with pytest.raises(ConfigError, match=r"(?s)model\.train_chunk_frames: lacks model\.chunk_frames=4"):
            here("transcribe", f"from={tmp_path / 'live'}", "live.wav", "streaming=true", "model.chunk_frames=4")
    else:
        with pytest.raises(ConfigError, match=r"model\.chunk_frames: cannot be changed: the model was trained with chunks of \d+ alone"):
            here("transcribe", f"from={tmp_path / 'live'}", "live.wav", "model.chunk_frames=4")
    capsys.readouterr()
