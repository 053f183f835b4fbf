"""Alignment of words with recordings, and texts that do not belong to them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from use import here

import speechtrain
from speechtrain.errors import ConfigError, DataError


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


def test_a_text_that_is_not_said_is_named_and_text_grids_of_other_recordings_are_left(
    trained: Path, spoken: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = next(iter(spoken.items()))
    assert here("align", f"from={trained}", "format=[textgrid,ctm]", "out=times") == 0
    done = capsys.readouterr()
    assert "does not seem" not in done.out + done.err
    assert len(list((tmp_path / "times").glob("*.TextGrid"))) == 8
    (tmp_path / "times/mine.TextGrid").touch()
    grids = {each.name for each in (tmp_path / "times").glob("*.TextGrid")}
    corrected = next(each for each in sorted((tmp_path / "times").glob("test-*.TextGrid")) if each.stem != Path(path).stem)
    corrected.write_text("by hand")
    wrong = text.translate(str.maketrans("abcdefgh", "bcdefgha"))
    assert here("align", f"from={trained}", f"audio={path}", f"text={wrong}", "format=[textgrid,json]", "out=times") == 0
    done = capsys.readouterr()
    assert f"'{wrong}' does not seem to be said; the model hears '{text}'" in done.err
    assert "aligned     1 of 1, 1 of them" in done.out
    names = {each.name for each in (tmp_path / "times").iterdir() if not each.name.startswith(".")}
    assert names == grids | {f"{Path(path).stem}.TextGrid", "alignments.jsonl"}
    assert corrected.read_text() == "by hand"
    assert json.loads((tmp_path / "times/alignments.jsonl").read_text())["heard"] == text


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
