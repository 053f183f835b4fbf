"""From a trained run to something used: evaluate, transcribe, align, export, serve, from Python."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, TINY, TRAINED
from rapidfuzz.distance import Levenshtein

import speechtrain
from speechtrain.errors import ConfigError, DataError, UserError
from speechtrain.inference.archive import read_index, stored_config
from speechtrain.inference.recognizer import Recognizer
from speechtrain.report import data as report

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


def here(module: str, *arguments: str) -> int:
    """The same in this process, which has imported everything."""
    import importlib

    code: int = importlib.import_module(f"speechtrain.{module}").run(list(arguments))
    return code


# evaluate


def test_an_evaluation_finds_what_the_run_found_and_writes_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((trained / "run.json").read_text())["metrics"]
    assert here("evaluate", f"from={trained}") == 0
    folder = trained / "evaluation-test"
    found = json.loads((folder / "evaluation.json").read_text())
    greedy = found["decoders"]["greedy"]
    assert greedy["metrics"]["cer"] == pytest.approx(metrics["test/cer"])
    assert greedy["metrics"]["loss"] == pytest.approx(metrics["test/loss"], rel=1e-4)
    assert greedy["words"] == found["utterances"] == 8
    lines = [line.split("\t") for line in (folder / "predictions.tsv").read_text().splitlines()]
    wrong = sum(reference != hypothesis for reference, hypothesis, _ in lines)
    assert greedy["substitutions"] + greedy["insertions"] + greedy["deletions"] == wrong
    names, *rows = [line.split("\t") for line in (folder / "texts.tsv").read_text().splitlines()]
    texts = [dict(zip(names, row, strict=True)) for row in rows]
    assert {row["text"] for row in texts} == {reference for reference, _, _ in lines}
    assert [int(row["utterances"]) for row in texts] == [sum(line[0] == row["text"] for line in lines) for row in texts]
    assert sum(int(row[name]) for row in texts for name in ("substitutions", "insertions", "deletions")) == wrong
    assert float(texts[0]["wer"]) == pytest.approx((int(texts[0]["wrong"])) / int(texts[0]["words"]), abs=1e-4)
    assert (folder / "error_report.html").is_file()
    assert "greedy" in capsys.readouterr().out


def test_several_decoders_are_counted_in_one_pass(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("abc\nhead\nbad\n")
    words = ["decoder=greedy", "nbest=2", "report=false", "out=there", "split=val"]
    with pytest.raises(ConfigError, match="the greedy decoder has one answer"):
        here("evaluate", f"from={trained}", *words)
    words[0:1] = ["decoder=beam", f"decoder.lexicon={tmp_path}/words.txt"]
    assert here("evaluate", f"from={trained}", *words) == 0
    found = json.loads((tmp_path / "there/evaluation.json").read_text())
    assert set(found["decoders"]) == {"beam"}
    said = {line.split("\t")[1] for line in (tmp_path / "there/predictions.tsv").read_text().splitlines()}
    assert all(re.fullmatch("(abc|head|bad)*", text) for text in said)  # the tokenizer of these letters has no space
    both = ["decoder=[greedy,beam]", f"decoder.lexicon={tmp_path}/words.txt", "report=false", "out=both", "nbest=2"]
    assert here("evaluate", f"from={trained}", *both) == 0
    assert set(json.loads((tmp_path / "both/evaluation.json").read_text())["decoders"]) == {"greedy", "beam"}
    assert (tmp_path / "both/predictions-beam.tsv").is_file()
    assert [path.name for path in (tmp_path / "both").glob("nbest*")] == ["nbest-beam.jsonl"]


def test_settings_of_the_decoder_are_searched(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert here("evaluate", "-m", f"from={trained}", "decoder=beam", "decoder.beam_size=1,4", "decoder.beam_threshold=5,10") == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^wer +\d", out, re.MULTILINE)) == 4
    assert "best on val: wer" in out
    command = out.split("on test: python -m speechtrain.evaluate ")[1].split()
    assert here("evaluate", *command, "report=false", "out=best") == 0
    assert here("evaluate", "-m", f"from={trained}", "decoder=beam", "decoder.beam_threshold=interval(1,9)", "n_trials=3") == 0
    with pytest.raises(ConfigError, match="n_trials: must be set"):
        here("evaluate", "-m", f"from={trained}", "decoder=beam", "decoder.beam_threshold=interval(1,9)")
    with pytest.raises(ConfigError, match="there is nothing to search"):
        here("evaluate", "-m", f"from={trained}", "decoder=beam")


def manifest(folder: Path, spoken: dict[str, str], change: Callable[[str], str] = str) -> Path:
    lines = [
        json.dumps({"audio_filepath": path, "duration": soundfile.info(path).duration, "text": change(text)})
        for path, text in spoken.items()
    ]
    folder.mkdir(exist_ok=True)
    for path in spoken:
        (folder / Path(path).name).write_bytes(Path(path).read_bytes())
    text = "\n".join(lines).replace(str(Path(next(iter(spoken))).parent) + "/", "")
    (folder / "all.jsonl").write_text(text + "\n")
    return folder


def test_other_data_are_evaluated_and_texts_that_the_model_cannot_say_are_refused(
    trained: Path, spoken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"data.root={manifest(tmp_path / 'mine', spoken)}", "data=manifest", "data.train=all.jsonl", "split=train"]
    assert here("evaluate", f"from={trained}", *data, "report=false", "out=one") == 0
    found = json.loads((tmp_path / "one/evaluation.json").read_text())
    assert found["decoders"]["greedy"]["metrics"]["cer"] < 0.2
    manifest(tmp_path / "mine", spoken, lambda text: text.upper() + "!")
    with pytest.raises(DataError, match="the model has no token for") as error:
        here("evaluate", f"from={trained}", *data, "report=false", "out=two")
    assert "'!' (8x, first in" in str(error.value)
    assert "data.normalize" in str(error.value)
    assert not (tmp_path / "two").exists()
    fixed = "data.normalize=[nfc,lowercase,punctuation]"
    assert here("evaluate", f"from={trained}", *data, fixed, "report=false", "out=three") == 0
    assert json.loads((tmp_path / "three/evaluation.json").read_text())["decoders"].keys() == {"greedy"}
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["from=nosuch"], "from: no run 'nosuch'"),
        (["from=none.ckpt"], "from: there is no file none.ckpt"),
        (["spilt=val"], "did you mean 'split'"),
        (["from=RUN", "decoder=bem"], "did you mean 'beam'"),
        (["from=RUN", "decoder=beam", "decoder.lexicn=a"], "did you mean 'decoder.lexicon'"),
        (["from=RUN", "decoder=beam", "decoder.lexicon=none.txt"], "decoder.lexicon: no such file"),
        (["from=RUN", "decoder=beam", "decoder.lm=none.arpa"], "decoder.lm: no such file"),
        (["from=RUN", "data.rot=/x"], "data.rot"),
        (["from=RUN", "data.test_size=0"], "data"),
        (["RUN"], "write key=value"),
    ],
)
def test_a_mistake_is_told_without_a_trace(words: list[str], told: str, trained: Path) -> None:
    with pytest.raises(UserError) as error:
        here("evaluate", *(word.replace("RUN", str(trained)) for word in words))
    assert told in str(error.value)


def test_a_folder_that_cannot_be_written_is_told(trained: Path, spoken: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = next(iter(spoken))
    for module, words in {
        "evaluate": ["report=false"],
        "export": [],
        "align": [f"audio={path}", f"text={spoken[path]}"],
        "inspect": [f"files={path}", "features=logmel_8k"],
    }.items():
        source = [f"from={trained}"] if module != "inspect" else []
        with pytest.raises(UserError, match=r"file/x: cannot be written"):
            here(module, *source, *words, "out=file/x")


def test_what_is_recognised_where_nothing_is_said_counts_as_inserted(
    trained: Path, spoken: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (path, text), (other, said) = list(spoken.items())[:2]
    lines = [{"audio_filepath": path, "text": text}, {"audio_filepath": other, "text": ""}]
    (Path(path).parent / "silent.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = ["data=manifest", f"data.root={Path(path).parent}", "data.train=silent.jsonl", "split=train", "data.empty_texts=evaluate"]
    assert here("evaluate", f"from={trained}", *data, "out=silent") == 0
    capsys.readouterr()
    found = json.loads(Path("silent/evaluation.json").read_text())["decoders"]["greedy"]
    assert found["metrics"]["cer"] == pytest.approx(len(said) / len(text))
    assert (found["insertions"], found["deletions"]) == (1, 0)


# transcribe


def test_files_are_transcribed_to_the_standard_output(trained: Path, spoken: dict[str, str], use: Use) -> None:
    path, text = next(iter(spoken.items()))
    assert use("transcribe", f"from={trained}", path).stdout == f"{text}\n"
    several = use("transcribe", f"from={trained}", str(Path(path).parent))
    said = dict(line.split("\t") for line in several.stdout.splitlines())
    assert said.keys() == spoken.keys()
    assert sum(said[name] == text for name, text in spoken.items()) >= 7


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


def test_one_channel_or_the_mean_is_heard_in_every_command(
    trained: Path, spoken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (first, _), (second, text) = list(spoken.items())[:2]
    sides = [soundfile.read(path, dtype="float32")[0] for path in (first, second)]
    length = len(sides[1])
    stereo = np.stack([np.resize(sides[0], length), sides[1]], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 8000)
    line = {"audio_filepath": "stereo.wav", "text": text}
    (tmp_path / "all.jsonl").write_text(json.dumps(line))
    right = [f"from={trained}", "data.channel=1"]
    data = ["data=manifest", f"data.root={tmp_path}", "data.train=all.jsonl", "split=train"]

    assert here("transcribe", *right, "stereo.wav") == 0
    told = capsys.readouterr()
    assert told.out == f"{text}\n"
    assert "channels" not in told.err
    assert here("align", *right, "audio=stereo.wav", f"text={text}", "format=json", "out=file") == 0
    assert here("align", *right, *data, "format=json", "out=data") == 0
    of_file, of_data = (json.loads((tmp_path / name / "alignments.jsonl").read_text()) for name in ("file", "data"))
    assert of_file["words"] == of_data["words"]
    assert here("evaluate", *right, *data) == 0
    assert speechtrain.load(str(trained)).channel is None
    capsys.readouterr()

    caplog.set_level("WARNING")
    mixed = f"from={trained}"
    assert here("transcribe", mixed, "stereo.wav") == 0
    told = capsys.readouterr()
    assert told.out != f"{text}\n"
    assert "stereo.wav has 2 channels, whose mean is heard; data.channel=0 takes the first" in " ".join(told.err.split())
    assert here("align", mixed, "audio=stereo.wav", f"text={text}", "out=file") == 0
    assert "stereo.wav has 2 channels" in caplog.text


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


@pytest.mark.parametrize("model", [["model=lstm"], ["model=conformer", "model.chunk_frames=8", "model.left_chunks=2"]])
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
    capsys.readouterr()


# align


def test_words_are_aligned_and_written_in_each_format(
    trained: Path, spoken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = next(iter(spoken.items()))
    assert here("align", f"from={trained}", f"audio={path}", f"text={text}", "format=[textgrid,ctm,json]", "out=times") == 0
    (found,) = (json.loads(line) for line in (tmp_path / "times/alignments.jsonl").read_text().splitlines())
    assert [token["text"] for token in found["tokens"]] == list(text)
    (word,) = found["words"]
    assert word["text"] == text
    assert 0 <= word["start"] < word["end"] <= found["duration"]
    name, channel, start, duration, said, _ = (tmp_path / "times/words.ctm").read_text().split()
    assert (name, channel, said) == (Path(path).stem, "1", text)
    assert float(start) + float(duration) == pytest.approx(word["end"], abs=2e-3)
    grid = (tmp_path / f"times/{Path(path).stem}.TextGrid").read_text()
    edges = [float(number) for number in re.findall(r"^            xm(?:in|ax) = ([\d.]+)", grid, re.MULTILINE)]
    tiers = re.findall(r"intervals: size = (\d+)", grid)
    count = 2 * int(tiers[0])
    assert edges[0] == 0
    assert edges[1 : count - 1 : 2] == edges[2:count:2]  # each begins where the one before it ends
    assert edges[count - 1] == pytest.approx(found["duration"], abs=1e-3)
    assert here("align", f"from={trained}", "split=val", "format=json", "out=val") == 0
    assert len((tmp_path / "val/alignments.jsonl").read_text().splitlines()) == 8
    lines = [{"audio_filepath": path, "text": text, "utt_id": "good"}, {"audio_filepath": "none.wav", "text": text}]
    lines.append({"audio_filepath": path, "text": "ab" * 1000, "utt_id": "long"})
    (Path(path).parent / "some.jsonl").write_text("\n".join(map(json.dumps, lines)))
    capsys.readouterr()
    data = ["data=manifest", f"data.root={Path(path).parent}", "data.train=some.jsonl", "split=train"]
    assert here("align", f"from={trained}", *data, "out=some") == 2
    assert "aligned     1 of 3" in capsys.readouterr().out
    lines[1:] = [{"audio_filepath": path, "text": text, "utt_id": "short", "offset": 0, "duration": 0.1}]
    (Path(path).parent / "some.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert here("align", f"from={trained}", *data, "data.min_duration=0.2", "out=some") == 0  # which the user asks for
    assert "aligned     1 of 1" in capsys.readouterr().out


def test_a_text_that_is_not_said_is_named_and_a_folder_holds_the_files_of_one_call(
    trained: Path, spoken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = next(iter(spoken.items()))
    assert here("align", f"from={trained}", "format=[textgrid,ctm]", "out=times") == 0
    done = capsys.readouterr()
    assert "does not seem" not in done.out + done.err
    assert len(list((tmp_path / "times").glob("*.TextGrid"))) == 8
    (tmp_path / "times/mine.TextGrid").touch()
    corrected = next(each for each in sorted((tmp_path / "times").glob("test-*.TextGrid")) if each.stem != Path(path).stem)
    corrected.write_text("by hand")
    wrong = text.translate(str.maketrans("abcdefgh", "bcdefgha"))
    assert here("align", f"from={trained}", f"audio={path}", f"text={wrong}", "format=[textgrid,json]", "out=times") == 0
    done = capsys.readouterr()
    assert f"'{wrong}' does not seem to be said; the model hears '{text}'" in done.err
    assert "aligned     1 of 1, 1 of them" in done.out
    names = {each.name for each in (tmp_path / "times").iterdir() if not each.name.startswith(".")}
    assert names == {f"{Path(path).stem}.TextGrid", "alignments.jsonl", "mine.TextGrid", corrected.name}
    assert corrected.read_text() == "by hand"
    assert json.loads((tmp_path / "times/alignments.jsonl").read_text())["heard"] == text


@pytest.mark.parametrize("command", ["evaluate", "align"])
def test_a_list_of_test_data_needs_none_of_training_data(
    command: str, trained: Path, corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = corpus(["ab", "ba"], name="some.jsonl")
    assert here(command, f"from={trained}", "data=manifest", f"data.root={root}", "data.test=some.jsonl", "data.split.val=20", "out=a") == 0
    with pytest.raises(ConfigError, match=r"data.test: no such manifest") as caught:
        here(command, f"from={trained}", "data=manifest", f"data.root={root}", "data.test=none.jsonl")
    assert "data.train" not in str(caught.value)
    capsys.readouterr()


def test_texts_that_do_not_belong_to_a_recording_are_refused(trained: Path, spoken: dict[str, str]) -> None:
    path, text = next(iter(spoken.items()))
    model = speechtrain.load(str(trained))
    with pytest.raises(DataError, match="has 2000 tokens, and the recording"):
        model.align(path, "ab" * 1000)
    with pytest.raises(DataError, match="'x', which the model has no token for"):
        model.align(path, "abx")
    assert model.align(path, text).score > model.align(path, text[::-1] if text != text[::-1] else text + "h").score
    with pytest.raises(ConfigError, match="audio and text go together"):
        here("align", f"from={trained}", f"audio={path}")
    with pytest.raises(ConfigError, match="there is no 'praat'"):
        here("align", f"from={trained}", "format=praat")


# export


def test_every_format_of_torch_is_tried_in_its_own_runtime(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here("export", f"from={trained}", "format=[torchscript,pt2,onnx,archive]", "out=files") == 0
    out = capsys.readouterr().out
    names = {path.name for path in (tmp_path / "files").iterdir()}
    assert {"model.ts", "model.pt2", "model.onnx", "tdnn-run.zip"} <= names
    for name in ("model.ts", "model.pt2", "model.onnx"):
        facts = json.loads((tmp_path / f"files/{name}.json").read_text())
        assert facts["difference"] < 1e-3
        assert facts["vocabulary"][0] == ""
        assert facts["features"]["sample_rate"] == 8000
    assert re.search(r"^archive +[\d.]+ +[\d.]+", out, re.MULTILINE)


@pytest.mark.long
def test_a_file_that_is_not_the_model_is_not_called_done(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from speechtrain.inference import convert, runtimes

    right = runtimes._OPEN["onnx"]
    converted = tmp_path / "converted.onnx"

    def convert_once(job: convert.ConversionJob) -> None:
        if not converted.exists():
            in_full(job)
            shutil.copy(job.path, converted)
        shutil.copy(converted, job.path)

    in_full = convert.convert
    monkeypatch.setattr(convert, "convert", convert_once)

    def wrong(path: Path) -> runtimes.Runner:
        run = right(path)
        return lambda features, lengths: (run(features, lengths)[0] + 0.1, run(features, lengths)[1])

    def shorter(path: Path) -> runtimes.Runner:
        run = right(path)
        return lambda features, lengths: (run(features, lengths)[0], run(features, lengths)[1] - 1)

    def broken(path: Path) -> runtimes.Runner:
        raise ValueError("no such operation")

    for opened, told in ((wrong, "they differ by"), (shorter, "have other lengths"), (broken, "no such operation")):
        monkeypatch.setitem(runtimes._OPEN, "onnx", opened)
        assert here("export", f"from={trained}", "format=onnx", "out=files") == 1
        assert told in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "files").iterdir()] == ["bad_model.onnx"]


def test_a_converter_that_crashes_is_told(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speechtrain.backends.base import Conversion
    from speechtrain.inference.convert import ConversionJob, convert

    checkpoint = next((trained / "checkpoints").glob("best-*"))
    job = ConversionJob(checkpoint, stored_config(checkpoint)[0], "nonsense", tmp_path / "out/model.onnx", Conversion(80, 10), trust=False)
    with pytest.raises(UserError, match="nonsense: the converter failed"):
        convert(job)
    assert list((tmp_path / "out").iterdir()) == []
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(UserError, match="nonsense: the converter crashed with signal 11"):
        convert(job)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ConfigError, match="'tflite' is not available for a model of backend=torch"):
        here("export", f"from={trained}", "format=[tflite]")


def test_every_command_takes_an_archive(trained: Path, spoken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, text = next(iter(spoken.items()))
    assert here("export", f"from={trained}", "out=.") == 0
    inside = set(read_index(tmp_path / "tdnn-run.zip")["files"])
    assert {"config.yaml", "vocabulary.json", "history.jsonl", "run.json", "speechtrain.log"} < inside
    assert {path.relative_to(trained).as_posix() for path in [*trained.glob("*.png"), *trained.glob("transcripts/*")]} <= inside
    capsys.readouterr()
    assert here("transcribe", "from=tdnn-run.zip", path) == 0
    assert capsys.readouterr().out == f"{text}\n"
    assert here("evaluate", "from=tdnn-run.zip", "report=false") == 0
    assert (tmp_path / "evaluation-test/evaluation.json").is_file()
    assert here("align", "from=tdnn-run.zip", f"audio={path}", f"text={text}") == 0
    assert (tmp_path / "alignments" / ".gitignore").read_text() == "*\n"
    assert here("inspect", "from=tdnn-run.zip") == 0
    for words, told in (
        ("from=tdnn-run.zip model=tdnn", "nothing that a trained model takes"),
        ("from=tdnn-run.zip -x", "'-x' is"),
        ("from", "write from="),
    ):
        with pytest.raises(ConfigError, match=told):
            here("inspect", *words.split())
    assert "multiply-adds" in capsys.readouterr().out
    assert here("export", "from=tdnn-run.zip", "format=onnx", "out=again") == 0
    assert (tmp_path / "again/model.onnx").is_file()
    again = speechtrain.compose([*TRAINED, "trainer.epochs=1", "optimizer.lr=1e-9", "init_from=tdnn-run.zip"], output_dir=tmp_path / "warm")
    assert speechtrain.train(again).metrics["test/cer"] < 0.1
    text_file = _text(tmp_path, spoken)
    assert here("lm", "from=tdnn-run.zip", "units=tokens", f"text={text_file}", "out=c.arpa", "order=2") == 0
    (tmp_path / "upper.txt").write_text(Path(text_file).read_text() + text.upper())
    with pytest.raises(DataError, match=rf"upper\.txt:\d+: '{text.upper()}' holds '{text[0].upper()}'.*, which the model has no token for"):
        here("lm", "from=tdnn-run.zip", "units=tokens", "text=upper.txt", "out=upper.arpa")
    assert not (tmp_path / "upper.arpa").exists()
    capsys.readouterr()


def test_recordings_are_drawn_as_the_model_sees_them(
    trained: Path, spoken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = list(spoken)[:2]
    asked: list[Any] = []
    draw = report.pictures
    monkeypatch.setattr(report, "pictures", lambda data, cuts: asked.append(data) or draw(data, cuts))
    shutil.copyfile(first, tmp_path / Path(second).name)
    assert here("inspect", f"from={trained}", f"files={second},{Path(second).name}", "out=same") == 0
    assert {path.name for path in (tmp_path / "same").iterdir()} == {f"{Path(second).stem}.png", f"{Path(second).stem}_2.png"}
    assert asked[0].features.sample_rate == speechtrain.load(str(trained)).sample_rate == 8000
    assert asked[0].augment.changes_nothing
    assert here("inspect", f"files={first},{second}", "augment=specaugment", "features=logmel_8k", "out=look") == 0
    assert {path.name for path in (tmp_path / "look").iterdir()} == {f"{Path(path).stem}.png" for path in (first, second)}
    with pytest.raises(ConfigError, match=r"files: there is no none\.wav"):
        here("inspect", "files=none.wav", "out=look")
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(DataError, match=r"text\.wav: cannot be read as audio"):
        here("inspect", "files=text.wav", "out=look")
    capsys.readouterr()


def _text(folder: Path, spoken: dict[str, str]) -> Path:
    (folder / "text.txt").write_text("".join(f"{text}\n" for text in spoken.values()))
    return folder / "text.txt"


def test_a_language_model_from_text_serves_the_decoder(
    trained: Path, spoken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _text(tmp_path, spoken)
    assert here("lm", f"text={text}", "out=lm.arpa", "lexicon=words.txt", "order=2", f"heldout={text}") == 0
    assert "perplexity" in capsys.readouterr().out
    beam = ["decoder=beam", "decoder.lm=lm.arpa", "decoder.lexicon=words.txt"]
    assert here("evaluate", f"from={trained}", *beam, "report=false", "out=e") == 0
    assert json.loads((tmp_path / "e/evaluation.json").read_text())["decoders"]["beam"]["metrics"]["wer"] == 0
    for words, told in [
        ([], "names no file"),
        (["text=none.txt"], "none.txt: cannot be read"),
        ([f"text={text}", "units=tokens"], "name it: from=last"),
        ([f"text={text}", "data.root=x"], "is an unknown key for speechtrain.lm"),
    ]:
        with pytest.raises(UserError, match=told):
            here("lm", *words)
    capsys.readouterr()


def test_a_run_exports_when_it_is_done(command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = command(*TINY, "model=mlp", "trainer.epochs=1", "export.on_train_end=[archive]", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert {"run.json", "history.jsonl", "speechtrain.log"} < set(read_index(tmp_path / "run/exports/mlp-run.zip")["files"])
    refused = command(*TINY, "model=mlp", "export.on_train_end=[onx]")
    assert refused.returncode == 2
    assert "there is no format 'onx'" in refused.stderr


def test_a_model_of_signals_is_evaluated_and_exported_and_has_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["data.train_size=12", "data.val_size=4", "data.test_size=4", "data.duration=1", "trainer.epochs=1", "tracking=[]"]
    cfg = speechtrain.compose(["experiment=signal_extraction", *sizes, "backend.threads=1"], output_dir=tmp_path / "run")
    metrics = speechtrain.train(cfg).metrics
    assert here("evaluate", "from=run", "report=false", "out=e") == 0
    found = json.loads((tmp_path / "e/evaluation.json").read_text())["decoders"]["model"]
    assert found["metrics"]["mse"] == pytest.approx(metrics["test/mse"], rel=1e-4)
    assert here("export", "from=run", "format=[onnx,archive]", "out=files") == 0
    assert (tmp_path / "files/model.onnx").is_file()
    with pytest.raises(UserError, match="takes no audio"):
        speechtrain.load("run")
    capsys.readouterr()


# where models come from


def test_a_model_is_found_by_each_of_its_names(
    trained: Path, spoken: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_id = json.loads((trained / "run.json").read_text())["mlflow_run_id"]
    path, text = next(iter(spoken.items()))
    uri = f"sqlite:///{trained.parent}/mlflow.db"
    checkpoint = next((trained / "checkpoints").glob("best-*"))
    for name in (str(trained), str(checkpoint), run_id, run_id[:7], f"runs:/{run_id}/model"):
        assert speechtrain.load(name, tracking_uri=uri).transcribe(path).text == text
    with pytest.raises(ConfigError, match="there is no runs:/0123/model"):
        speechtrain.load("runs:/0123/model", tracking_uri=uri)
    with pytest.raises(ConfigError, match="from: no run 'last'"):
        speechtrain.load()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="neither a checkpoint nor an archive"):
        speechtrain.load("notes.txt")
    with pytest.raises(ConfigError, match=r"speechtrain\.evaluate takes data"):
        speechtrain.load(str(trained), "data=digits")


def test_a_model_that_names_foreign_classes_is_refused_unless_it_is_trusted(trained: Path, tmp_path: Path) -> None:
    import torch

    checkpoint = torch.load(next((trained / "checkpoints").glob("best-*")), weights_only=True)
    checkpoint["extra"]["config"]["decoder"] = {"_target_": "os.system"}
    checkpoint["extra"]["config"]["tokenizer"]["lowercase"] = {"_target_": "torch.utils.collect_env.run", "command": "touch canary"}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    for call in (
        lambda: speechtrain.load("evil.ckpt"),
        lambda: here("evaluate", "from=evil.ckpt"),
        lambda: here("export", "from=evil.ckpt"),
    ):
        with pytest.raises(ConfigError, match=r"os\.system, which is not of this package") as caught:
            call()
        assert "tokenizer.lowercase._target_" in str(caught.value)
    with pytest.raises(UserError, match=r"tokenizer\.lowercase"):
        speechtrain.load("evil.ckpt", trust=True)
    assert not (tmp_path / "canary").exists()


# from Python


def test_a_model_from_python_transcribes_aligns_and_gives_its_log_probabilities(trained: Path, spoken: dict[str, str]) -> None:
    path, text = next(iter(spoken.items()))
    model = speechtrain.load(str(trained), "decoder=beam", "backend.threads=1")
    assert isinstance(model, Recognizer)
    found = model.transcribe(path, nbest=3)
    assert found.text == text
    assert found.alternatives[0][0] == text
    samples, rate = soundfile.read(path)
    log_probs = model.log_probs(samples, rate)
    assert log_probs.shape[1] == len(model.tokenizer.vocabulary)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=1e-4)
    assert len(log_probs) * model.frame_seconds == pytest.approx(len(samples) / rate, abs=0.05)
    assert "".join(token.text for token in model.align(path, text).tokens) == text


# serve


def test_a_service_transcribes_counts_and_refuses(trained: Path, spoken: dict[str, str]) -> None:
    from starlette.testclient import TestClient

    from speechtrain.config.compose import compose_command
    from speechtrain.config.schemas.commands import ServeConfig
    from speechtrain.inference.service import Service

    cfg = compose_command(ServeConfig, ["max_megabytes=0.2", "max_seconds=5"])
    with TestClient(Service(speechtrain.load(str(trained)), cfg).app()) as client:
        for path, text in spoken.items():
            answer = client.post("/transcribe", params={"words": "true"}, content=Path(path).read_bytes())
            assert answer.status_code == 200
            assert answer.json()["seconds"] == pytest.approx(soundfile.info(path).duration, abs=1e-3)
            if answer.json()["text"] == text:
                assert [word["text"] for word in answer.json()["words"]] == [text]
        bad = client.post("/transcribe", content=b"no audio")
        assert (bad.status_code, "cannot be read as audio" in bad.json()["error"]) == (400, True)
        assert client.post("/transcribe").status_code == 400
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros(8000 * 6), 8000, format="FLAC")
        long = client.post("/transcribe", content=buffer.getvalue())
        assert (long.status_code, "lasts 6 s; 5 s are allowed" in long.json()["error"]) == (400, True)
        assert client.post("/transcribe", content=b"0" * 300_000).status_code == 413
        assert client.post("/transcribe", content=iter([b"0" * 150_000] * 2)).status_code == 413
        assert client.get("/transcribe").status_code == 405
        health = client.get("/health").json()
        assert (health["status"], health["sample_rate"], health["waiting"]) == ("ok", 8000, 0)
        metrics = client.get("/metrics").text
        assert 'speechtrain_requests_total{status="200"} 8.0' in metrics
        assert 'speechtrain_requests_total{status="400"} 3.0' in metrics
        assert "speechtrain_latency_seconds_bucket" in metrics


def test_the_command_serves_from_the_moment_it_says_so_until_ctrl_c(trained: Path, spoken: dict[str, str]) -> None:
    import httpx

    path, text = next(iter(spoken.items()))
    server = subprocess.Popen(
        [sys.executable, "-m", "speechtrain.serve", f"from={trained}", "port=0"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[1]
        assert httpx.post(f"{url}/transcribe", content=Path(path).read_bytes(), timeout=60).json()["text"] == text
        refused = httpx.post(f"{url}/transcribe", content=b"no audio", timeout=60)
        assert "BytesIO" not in refused.text
        busy = subprocess.run(
            [sys.executable, "-m", "speechtrain.serve", f"from={trained}", f"port={url.rpartition(':')[2]}"],
            capture_output=True,
            check=False,
        )
        assert (busy.returncode, b"cannot be opened" in busy.stderr) == (2, True)
        server.send_signal(signal.SIGINT)
        left, _ = server.communicate(timeout=30)
    finally:
        server.kill()
    assert server.returncode == 0
    assert "Traceback" not in left


def test_requests_that_wait_together_are_computed_together_and_too_many_are_sent_away(trained: Path, spoken: dict[str, str]) -> None:
    import asyncio

    import httpx

    from speechtrain.config.compose import compose_command
    from speechtrain.config.schemas.commands import ServeConfig
    from speechtrain.inference.service import Service

    content = [Path(path).read_bytes() for path in spoken]

    async def ask() -> tuple[list[httpx.Response], str]:
        service = Service(speechtrain.load(str(trained)), compose_command(ServeConfig, ["queue=20"]))
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            asking = [asyncio.create_task(client.post("/transcribe", content=content[n % 8])) for n in range(30)]
            while service._queue.qsize() < 20:
                await asyncio.sleep(0.01)
            worker = asyncio.create_task(service.work())
            answers = await asyncio.gather(*asking)
            metrics = (await client.get("/metrics")).text
            worker.cancel()
        return answers, metrics

    answers, metrics = asyncio.run(ask())
    states = [answer.status_code for answer in answers]
    assert states.count(200) >= 20
    assert set(states) <= {200, 503}
    texts = [answer.json()["text"] == list(spoken.values())[n % 8] for n, answer in enumerate(answers) if answer.status_code == 200]
    assert np.mean(texts) > 0.8
    assert 'speechtrain_batch_size_bucket{le="1.0"} 0.0' in metrics


def test_the_notebook_runs_from_its_first_to_its_last_cell(trained: Path, spoken: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(REPOSITORY / "docs/use.ipynb", as_version=4)
    monkeypatch.setenv("SPEECHTRAIN_MODEL", str(trained))
    monkeypatch.setenv("SPEECHTRAIN_AUDIO", next(iter(spoken)))
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert spoken[next(iter(spoken))] in said
