"""From a trained run to something used: what all commands have in common, archives, names of models, and Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, TRAINED, thinned
from use import here

import speechtrain
from speechtrain.errors import ConfigError, DataError, UserError
from speechtrain.inference.archive import read_index
from speechtrain.inference.recognizer import Recognizer
from speechtrain.report import data as report


@pytest.mark.parametrize(
    ("words", "told"),
    thinned(
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
        4,
    ),
)
def test_a_mistake_is_told_without_a_trace(words: list[str], told: str, trained: Path) -> None:
    with pytest.raises(UserError) as error:
        here("evaluate", *(word.replace("RUN", str(trained)) for word in words))
    assert told in str(error.value)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_the_notebook_runs_from_its_first_to_its_last_cell(trained: Path, spoken: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(REPOSITORY / "docs/use.ipynb", as_version=4)
    monkeypatch.setenv("SPEECHTRAIN_MODEL", str(trained))
    monkeypatch.setenv("SPEECHTRAIN_AUDIO", next(iter(spoken)))
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert spoken[next(iter(spoken))] in said
