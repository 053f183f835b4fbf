from __future__ import annotations

from pathlib import Path

import pytest

from speechtrain.errors import ConfigError, UserError
from speechtrain.sweep.study.folder import own_folder
from speechtrain.sweep.study.storage import storage_url


def test_a_folder_holds_the_trials_of_one_study_wherever_it_lies(tmp_path):
    folder = tmp_path / "sweep"
    own_folder(folder, "one", storage_url(None, folder))
    moved = folder.rename(tmp_path / "moved")

    own_folder(moved, "one", storage_url(None, moved))
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir: .*moved holds the trials of the study 'one'\n"):
        own_folder(moved, "two", storage_url(None, moved))
    with pytest.raises(ConfigError, match=r"holds the trials of the study 'one' in journal:///\./study\.journal"):
        own_folder(moved, "one", "sqlite:////elsewhere/study.db")


def test_who_asks_does_not_change_whose_folder_it_is(tmp_path):
    own_folder(tmp_path, "one", "postgresql+psycopg://me:secret@db/optuna")

    own_folder(tmp_path, "one", "postgresql+psycopg://you@db/optuna")

    assert "secret" not in (tmp_path / "study.json").read_text()


@pytest.mark.parametrize(("first", "second"), [("a", "a/0"), ("a/0", "a")])
def test_sweeps_do_not_lie_in_each_others_folders(tmp_path, first, second):
    own_folder(tmp_path / first, first, storage_url(None, tmp_path / first))

    with pytest.raises(ConfigError, match="lie in each other"):
        own_folder(tmp_path / second, second, storage_url(None, tmp_path / second))


@pytest.mark.parametrize("folder", ["/sys/sweep", "a" * 300])
def test_a_folder_that_cannot_be_made_is_the_users_mistake(folder):
    with pytest.raises(UserError, match=r"cannot be written .*\n.*set hydra\.sweep\.dir"):
        own_folder(Path(folder), "one", "memory:")
