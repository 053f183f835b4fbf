"""`resume=` finds the run that is meant and goes on with its own overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from speechtrain.app.resume import resume_arguments
from speechtrain.errors import ConfigError
from speechtrain.tracking.run_folder import find_run, read_run_file, write_run_file


def run(folder: Path, started: int, run_id: str, *, checkpoint: bool = True) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["model=mlp", "seed=3"]))
    write_run_file(folder, {"started": started, "mlflow_run_id": run_id})
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()
    return folder.absolute()


def test_last_is_the_run_that_started_last_and_an_id_is_the_run_of_that_id() -> None:
    one, two = run(Path("outputs/b/1"), 1, "aa"), run(Path("outputs/a/2"), 2, "bb", checkpoint=False)
    assert find_run("last") == (two, None)
    assert find_run("aa") == (one, one / "checkpoints" / "last.ckpt")
    assert find_run(str(one)) == find_run("aa")
    kept = one / "checkpoints" / "epoch=001.ckpt"
    kept.touch()
    assert find_run(str(kept)) == (one, kept)


def test_the_runs_own_overrides_come_first_and_new_ones_on_top() -> None:
    one = run(Path("outputs/1"), 1, "aa")
    found = resume_arguments(["--config-dir=x", "resume=last", "trainer.epochs=9"])
    assert found == [
        "--config-dir=x",
        "model=mlp",
        "seed=3",
        "trainer.epochs=9",
        f"resume={one}/checkpoints/last.ckpt",
        f"hydra.run.dir={one}",
    ]
    assert resume_arguments(["seed=1"]) == ["seed=1"]
    assert resume_arguments(["resume=null"]) == ["resume=null"]


def test_a_checkpoint_away_from_its_run_starts_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "model.ckpt").touch()
    assert resume_arguments(["seed=1", "resume=some/model.ckpt"]) == ["seed=1", f"resume={tmp_path}/some/model.ckpt"]


def test_no_such_run_is_an_error_that_says_where_it_was_looked_for() -> None:
    with pytest.raises(ConfigError, match=r"no run 'zz' under .*outputs"):
        find_run("zz")


def test_a_damaged_run_file_is_no_run(tmp_path: Path) -> None:
    write_run_file(tmp_path, {"a": 1})
    write_run_file(tmp_path, {"b": 2})
    assert read_run_file(tmp_path) == {"a": 1, "b": 2}
    (tmp_path / "run.json").write_text("{half")
    assert read_run_file(tmp_path) == {}
