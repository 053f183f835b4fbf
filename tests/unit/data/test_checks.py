"""What is said of a corpus before it is trained on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import corpora
import numpy as np
import pytest
from conftest import prepared

from speechtrain.data.checks import duplicates, facts_of, far_from_median, shared_between_splits
from speechtrain.errors import DataError

QUIET = ["features=logmel_8k", "backend.threads=1"]


@pytest.fixture
def mine(tmp_path: Path) -> list[str]:
    """A manifest with every fault: things in two splits, outliers, a letter that training lacks, a text that cannot be aligned."""
    lists: dict[str, list[dict[str, object]]] = {"train": [], "val": []}

    def add(split: str, name: str, text: str, said: str | None = None, **more: object) -> None:
        path = corpora.write(tmp_path / "audio" / f"{name}.wav", said or text, 8000)
        lists[split].append({"audio_filepath": f"audio/{path.name}", "text": text, "utt_id": name, **more})

    for index in range(10):
        add(
            "train",
            f"t{index}",
            corpora.SENTENCES[index % 4].lower(),
            said=corpora.SENTENCES[index % 4] + "ABCDEFGHIJ"[index],
            speaker="ann",
        )
    add("train", "slow", "a", said="THIS IS MUCH MORE THAN AN A OF COURSE", speaker="ann", parent="p1")
    add("train", "fast", "far too many letters for so short a sound", said="SHORT", speaker="bob")
    add("val", "v0", "héllo", said=corpora.SENTENCES[0] + "A", speaker="ann", parent="p1")
    add("val", "v1", "hello", speaker="cyd")
    for split, entries in lists.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return ["data=manifest", f"data.root={tmp_path}", "data.val=val.jsonl", *QUIET]


def test_a_parent_in_two_splits_is_refused_unless_allowed(mine: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match=r"1 parent is in more than one split: train/slow and val/v0 \(data\.on_shared\.parent=error\)"):
        prepared(mine)
    with pytest.raises(DataError, match=r"1 speaker is in more than one split: train/t0 and val/v0"):
        prepared([*mine, "data.on_shared.speaker=error"])
    with pytest.raises(DataError, match=r"1 recording with the same samples is in more than one split: train/t0 and val/v0"):
        prepared([*mine, "data.on_shared.parent=allow", "data.on_shared.audio=error"])
    caplog.clear()
    prepared([*mine, "data.on_shared.parent=warn", "data.on_shared.audio=allow"])
    assert "1 parent is in more than one split" in caplog.text
    assert "same samples" not in caplog.text
    assert "1 speaker is in more than one split" in caplog.text
    caplog.clear()
    prepared(
        [*mine, "data.on_shared.parent=allow", "data.split.by=text", "data.split.test=10"]
    )  # which asks for texts to be kept apart, not speakers
    assert "in more than one split: train/t0 and val/v0 (data.on_shared.speaker" not in caplog.text


def test_facts_and_faults_of_a_split(mine: list[str]) -> None:
    data = prepared([*mine, "data.on_shared.parent=allow"])
    cuts = {name: list(data.corpus.splits[name]) for name in ("train", "val")}
    facts = facts_of(cuts["train"], data.tokenizer)
    assert facts.speakers == 2
    assert facts.rates == {8000: 12}
    assert facts.hours == pytest.approx(sum(cut.duration for cut in cuts["train"]) / 3600)
    assert [name for name, _, _ in facts.outliers] == ["slow", "fast"]
    assert facts_of(cuts["val"], data.tokenizer).unknown == {"é": 1}
    assert duplicates([*cuts["train"], *cuts["val"]], data.cache.checksums) == [["t0", "v0"]]
    assert {kind: len(names) for kind, names in shared_between_splits(data.corpus, data.cache.checksums).items()} == {
        "speaker": 1,
        "parent": 1,
        "audio": 1,
    }


def test_equal_values_have_no_outliers_and_few_values_neither() -> None:
    assert far_from_median(np.full(20, 12.0)) == []
    assert far_from_median(np.array([1.0, 100.0])) == []
    assert far_from_median(np.array([12.0] * 20 + [11.5, 300.0])) == [21]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "300"}
    program = [sys.executable, "-m", "speechtrain.inspect", *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=300, env=environment)


def test_the_command_tells_all_and_draws_a_page(mine: list[str], tmp_path: Path) -> None:
    options = ["data.on_shared.parent=warn", "data.normalize=[nfc,uppercase]", "model.stem_time_strides=[2,2]"]
    done = command(*mine, *options, f"out={tmp_path / 'page'}")
    assert done.returncode == 0, done.stderr
    for part in (
        "tokens: <blank>, <space>, A, ",
        "text        'he hoped there would be stew' -> 'HE HOPED THERE WOULD BE STEW'",
        "train: 2 utterances with far more or fewer characters a second than the others: slow",
        "val: tokens that the training text lacks: 'É' (1x)",
        "train: 1 utterance too short for their text at the model's subsampling of 4: fast",
        "1 recording occurs more than once: t0 = v0",
        "1 parent is in more than one split: train/slow and val/v0",
    ):
        assert part in done.stdout
    page = (tmp_path / "page" / "data_report.html").read_text()
    assert page.count("<svg") == 2 + 4
    assert "HE HOPED THERE WOULD BE STEW" in page
    assert not list(tmp_path.glob("outputs"))


def test_a_mistake_is_answered_in_words_with_exit_code_2(tmp_path: Path) -> None:
    cases = {"data=nothing": "data", "examples=many": "examples: must be a whole number", "data=manifest": "data.root: has no value"}
    for argument, part in cases.items():
        done = command(argument)
        assert done.returncode == 2
        assert part in done.stderr
        assert "Traceback" not in done.stderr
