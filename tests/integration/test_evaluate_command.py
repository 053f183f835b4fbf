"""Evaluation of a trained model: on its own data and on others, with several decoders, and with searched settings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from checkpoints import Make
from use import here, manifest

from speechtrain.errors import ConfigError, DataError, UserError


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


@pytest.mark.slow
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


def test_hot_words_are_counted_with_the_preference_and_without(
    trained: Path, spoken: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = [*spoken.values()]
    word = max(said, key=len)
    hot = ["decoder=[greedy,beam]", f"decoder.hot_words=[{word},{word[::-1]}x]", "decoder.hot_word_score=60"]
    with pytest.raises(ConfigError, match=r"decoder\.hot_words: .* needs 'x', which the model has no token for"):
        here("evaluate", f"from={trained}", *hot, "report=false", "out=hot")
    hot[1] = f"decoder.hot_words=[{word},{word[0] * 3}]"
    assert here("evaluate", f"from={trained}", *hot, "report=false", "out=hot") == 0
    found = json.loads(Path("hot/evaluation.json").read_text())["decoders"]
    assert "hot_words" not in found["greedy"]
    counts = found["beam"]["hot_words"]
    assert counts[word]["found"] + counts[word]["missed"] == sum(text.count(word) for text in said) > 0
    assert counts[word[0] * 3]["inserted"] > counts[word[0] * 3]["without"]["inserted"] == 0  # so strong a preference writes it anywhere
    out = capsys.readouterr().out
    assert "hot words of beam" in out
    assert re.search(rf"^{word} +{counts[word]['found'] + counts[word]['missed']} ", out, re.MULTILINE)
    Path("words.txt").write_text(f"{word[::-1]}\n")
    no_preference = [f"decoder.hot_words=[{word}]", "decoder.hot_word_score=0", "decoder.lexicon=words.txt"]
    assert here("evaluate", f"from={trained}", "decoder=beam", *no_preference, "report=false", "out=words") == 0
    (counts,) = json.loads(Path("words/evaluation.json").read_text())["decoders"]["beam"]["hot_words"].values()
    assert counts.pop("without") == counts  # the lexicon has the word in both
    assert counts["found"] + counts["inserted"] > 0


def test_a_pretrained_checkpoint_is_not_evaluated_on_data_that_nobody_named(made: Make) -> None:
    source = f"from={made('wav2vec2')}"
    for command in (["evaluate", source], ["evaluate", source, "data.batch_size=2"], ["align", source]):
        with pytest.raises(ConfigError, match=r"data: is not chosen, and .* is a pretrained checkpoint, which has no data of its own"):
            here(*command)
    corpus = ["data=synthetic", "data.train_size=1", "data.val_size=1", "data.test_size=2"]
    assert here("evaluate", source, *corpus, "report=false", "out=named") == 0


@pytest.mark.slow
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


def test_the_results_of_another_decoder_are_kept_beside_the_newest(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["decoder=beam"], ["decoder=beam"]):
        assert here("evaluate", f"from={trained}", "split=val", "report=false", *options) == 0
    found = {path.name: set(json.loads((path / "evaluation.json").read_text())["decoders"]) for path in trained.glob("evaluation-val*")}
    assert found == {"evaluation-val": {"beam"}, "evaluation-val-1": {"greedy"}}
    assert "evaluation-val-1 has the results before" in "".join(capsys.readouterr().out.split("\n")).replace("  ", " ")
