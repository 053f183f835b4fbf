"""Callbacks that the config names get every event, and a run's name goes to every tracker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TINY

import speechtrain
from speechtrain import compose
from speechtrain.config.stored import foreign_targets
from speechtrain.errors import ConfigError

MINE = """
from pathlib import Path

from speechtrain.backends.callbacks import Callback
from speechtrain.tracking.base import Tracker


class Note(Callback):
    def __init__(self, file: str = "events.txt"):
        self.file = Path(file)

    def note(self, text):
        with self.file.open("a") as file:
            file.write(text + "\\n")

    def on_epoch_start(self, epoch):
        self.note(f"epoch {epoch}")

    def on_batch_start(self, epoch, batch_index, batch_count):
        self.note(f"batch {epoch}.{batch_index}/{batch_count}")

    def on_batch_end(self, epoch, batch_index, batch_count, loss, lr):
        self.note("end of batch")


class Names(Tracker):
    def start(self, info):
        Path("name.txt").write_text(info.name)

    def nothing(self, *args, **kwargs):
        return ""

    log_metrics = log_table = log_file = log_checkpoint = how_to_look = set_tag = finish = nothing
"""


def test_callbacks_are_built_from_the_config_and_hear_of_epochs_and_batches_before_they_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_callbacks.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    small = [*TINY, "model=mlp", "trainer.epochs=2", "trainer.limit_train_batches=2", "run_name=a name"]
    small += ["+tracking.mine._target_=mine_callbacks.Names"]
    speechtrain.train(compose([*small, "callbacks=[mine_callbacks.Note,{_target_: mine_callbacks.Note, file: other.txt}]"]))
    epochs = [[f"epoch {epoch}", *(line for index in (0, 1) for line in (f"batch {epoch}.{index}/2", "end of batch"))] for epoch in (0, 1)]
    for file in ("events.txt", "other.txt"):
        assert Path(file).read_text().splitlines() == epochs[0] + epochs[1]
    assert Path("name.txt").read_text() == "a name"
    for mistake, told in {
        "mine_callbacks.Nope": "callbacks.0._target_: module 'mine_callbacks' has no 'Nope'",
        "{_target_: mine_callbacks.Note, fil: 1}": "callbacks.0.fil: mine_callbacks.Note takes no argument 'fil'",
        "3": "callbacks.0: must be a class by its dotted path",
    }.items():
        with pytest.raises(ConfigError, match=told):
            compose([*small, f"callbacks=[{mistake}]"])
    with pytest.raises(ConfigError, match=r"callbacks\.0: must make a callback, received PosixPath"):
        speechtrain.train(compose([*small, "callbacks=[pathlib.Path]"]))


def test_callbacks_of_a_run_that_is_not_trusted_are_foreign_code() -> None:
    named = ["os.getcwd", {"_target_": "os.getcwd"}]
    assert [target for _, target in foreign_targets(json.loads(json.dumps({"callbacks": named})))] == ["os.getcwd", "os.getcwd"]
