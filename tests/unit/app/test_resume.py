"""`resume=` finds the run that is meant and goes on with its own overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from speechtrain.addresses import keep
from speechtrain.app.resume import resume_arguments, sign
from speechtrain.errors import ConfigError, UserError
from speechtrain.tracking.mlflow.location import local_uri
from speechtrain.tracking.run_folder import find_run, read_run_file, remember, write_run_file


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


def test_the_first_letters_of_a_run_id_are_enough_where_only_one_run_has_them() -> None:
    one, two = run(Path("outputs/1"), 1, "ab12"), run(Path("outputs/2"), 2, "ab34")
    assert find_run("ab1")[0] == one
    assert find_run("ab34")[0] == two
    with pytest.raises(ConfigError, match="init_from: 2 runs have an id that begins with 'ab': ab12, ab34"):
        find_run("ab", "init_from")


def test_last_is_found_in_other_folders_and_has_a_model_where_one_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, killed = run(tmp_path / "far" / "1", 2, "aa"), run(Path("outputs/2"), 3, "bb", checkpoint=False)
    remember(elsewhere)
    assert find_run("last")[0] == killed
    assert find_run("last", "from")[0] == find_run("aa")[0] == elsewhere
    write_run_file(killed, {"status": "FINISHED"})  # with data.on_empty=warn
    assert find_run("last")[0] == elsewhere
    (tmp_path / "another").mkdir()
    monkeypatch.chdir(tmp_path / "another")
    with pytest.raises(ConfigError, match="no run 'last'"):
        find_run("last")


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
        "hydra.output_subdir=null",
    ]
    assert resume_arguments(["seed=1"]) == ["seed=1"]
    assert resume_arguments(["resume=null"]) == ["resume=null"]


@pytest.mark.parametrize(
    "words", [["resume=last", "--cfg", "job"], ["--cfg", "job", "resume=last", "trainer.epochs=9"], ["-cjob", "resume=last"]]
)
def test_options_of_hydra_keep_their_values(words: list[str]) -> None:
    run(Path("outputs/1"), 1, "aa")

    found = resume_arguments(words)

    options = ["-cjob"] if "-cjob" in words else ["--cfg", "job"]
    assert found[: len(options)] == options
    assert not any(item.startswith("-") or item == "job" for item in found[len(options) :])


def test_a_checkpoint_away_from_its_run_starts_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "model.ckpt").touch()
    assert resume_arguments(["seed=1", "resume=some/model.ckpt"]) == ["seed=1", f"resume={tmp_path}/some/model.ckpt"]


def test_no_such_run_is_an_error_that_says_where_it_was_looked_for() -> None:
    for name, key in (("zz", "from"), ("last", "resume")):
        with pytest.raises(ConfigError, match=rf"{key}: no run '{name}' under .*outputs.* yet\n.*train first, as with (?!.*last)"):
            find_run(name, key)
    run(Path("outputs/1"), 1, "aa")
    with pytest.raises(ConfigError, match=r"no run 'zz' under .*multirun\n.*give last"):
        find_run("zz")


def test_a_run_without_an_id_is_none_that_an_id_names() -> None:
    one = run(Path("outputs/1"), 1, "aa")
    write_run_file(one, {"mlflow_run_id": None})
    for name in ("None", "N"):
        with pytest.raises(ConfigError, match=f"no run '{name}'"):
            find_run(name)


@pytest.mark.parametrize("key", ["resume", "init_from"])
def test_a_file_that_is_no_checkpoint_is_refused(key: str) -> None:
    one = run(Path("outputs/1"), 1, "aa")
    with pytest.raises(ConfigError, match=rf"{key}: .*run.json is no checkpoint, whose name ends in .ckpt or .*\n.*give last"):
        find_run(str(one / "run.json"), key)


def test_an_archive_gives_weights_to_begin_with_and_is_nothing_to_resume() -> None:
    archive = Path("model.zip")
    archive.touch()
    assert find_run("model.zip", "init_from")[1] == archive.absolute()
    with pytest.raises(ConfigError, match=r"model\.zip is no checkpoint"):
        find_run("model.zip")


def test_a_damaged_run_file_is_no_run(tmp_path: Path) -> None:
    write_run_file(tmp_path, {"a": 1})
    write_run_file(tmp_path, {"b": 2})
    assert read_run_file(tmp_path) == {"a": 1, "b": 2}
    (tmp_path / "run.json").write_text("{half")
    assert read_run_file(tmp_path) == {}


def with_overrides(*overrides: object) -> Path:
    one = run(Path("outputs/1"), 1, "aa")
    (one / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    return one


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data._target_=os.system", r"data\._target_: in .*overrides\.yaml is os\.system, which is not of this package"),
        ("++data._target_=speechtrain.files.os.system", r"data\._target_: in .* is speechtrain\.files\.os\.system, which"),
        ("data={_target_: os.system, command: x}", r"data\._target_: in .* is os\.system"),
        ("+tokenizer.extra=[{a: {_target_: os.system}}]", r"tokenizer\.extra\.0\.a\._target_: in .* is os\.system"),
        ("data._target_=${oc.env:HOME}", "which is resolved with what is on this machine"),
        ("data._target_=${samples}", r"data\._target_: in .* is \$\{samples\}"),
        ("+note=${oc.env:HOME}", "which is resolved with what is on this machine"),
        ("model=../../../evil/model", "an option outside of the config groups"),
        ("+data@data.corpora.a=[../../evil]", "an option outside of the config groups"),
        ("experiment=/evil", "an option outside of the config groups"),
        ("hydra.launcher._target_=os.system", "a key of Hydra's own"),
        ("+hydra/callbacks@hydra.callbacks.x=evil", "a key of Hydra's own"),
        ("hydra.job.env_set={LD_PRELOAD: x}", "a key of Hydra's own"),
        ("++hydra.job.env_set.PATH=x", "a key of Hydra's own"),
        ("~hydra", "a key of Hydra's own"),
        ("+model@hydra.callbacks.x=tdnn", "a key of Hydra's own"),
        ("--config-dir=/evil", "which is no override"),
        ("-m", "which is no override"),
        ("a b", "which is no override"),
        ("+tracking.evil={_target_: subprocess.getoutput, cmd: x}", r"tracking\.evil\._target_: in .* is subprocess\.getoutput"),
        ("tracking={evil: {_target_: os.system}}", r"tracking\.evil\._target_: in .* is os\.system"),
        ("++tracking._target_=os.system", r"tracking\._target_: in .* is os\.system"),
        ("tracking.mlflow._target_=os.system", r"tracking\.mlflow\._target_: in .* is os\.system"),
        ("+model@tracking.evil=[{_target_: os.system}]", r"tracking\.evil\.0\._target_: in .* is os\.system"),
        ("+model@_global_.hydra.callbacks.x=tdnn", "a key of Hydra's own"),
        (
            "tracking.mlflow.tracking_uri=http://evil/",
            r"tracking\.mlflow\.tracking_uri: in .* is 'http://evil/', to which the run would be sent",
        ),
        ("tracking={mlflow: {tracking_uri: '${note}'}}", r"tracking\.mlflow\.tracking_uri: .* to which the run would be sent"),
        ("tracking.wandb.entity=evil", r"tracking\.wandb\.entity: .* to which the run would be sent"),
        ("tracking.tensorboard.folder=../../x", r"tracking\.tensorboard\.folder: .* a place outside of the run's folder"),
        ("output_dir=/anywhere", r"output_dir: in .* is '/anywhere', a place outside of the run's folder"),
        ("data.save_to=/anywhere", r"data\.save_to: .* a place outside of the run's folder"),
        ("+data.corpora.a={cache_dir: /x}", r"data\.corpora\.a\.cache_dir: .* a place outside of the run's folder"),
        ("seed=1,2", "which begins a sweep"),
        ("trainer.epochs=range(1,3)", "which begins a sweep"),
        ("sweep=lr", "which begins a sweep"),
        ("+experiment=[rerun_best]", "which begins a sweep"),
    ],
)
def test_what_only_the_users_own_overrides_may_do_needs_trust(override: str, told: str) -> None:
    one = with_overrides("seed=3", override, "++trust=true")
    with pytest.raises(ConfigError, match=told):
        resume_arguments([f"resume={one}"])
    with pytest.raises(ConfigError, match=told):
        resume_arguments([f"resume={one}", "trust=true", "trust=false"])
    assert resume_arguments([f"resume={one}", "trust=true"])[:3] == ["seed=3", override, "trust=true"]


def test_an_honest_run_is_not_asked_about() -> None:
    honest = [
        "model._target_=speechtrain.backends.torch.models.Mlp",
        "data.root=/data/../speech",
        "scheduler.step_epochs=${trainer.epochs}",
    ]
    honest += ["+data@data.corpora.a=synthetic", "data.normalize=['replace:(a):b',nfc]", "init_from=/runs/../1/last.ckpt", "model=custom"]
    honest += [
        f"output_dir={Path('outputs/1').absolute()}",
        "tracking=[mlflow,tensorboard,wandb]",
        "tracking.mlflow.experiment=mine",
        "sweep=null",
    ]
    honest += [f"tracking.mlflow.tracking_uri='{local_uri(Path.cwd())}'", "tracking.tensorboard.folder=events", "experiment=quick"]
    honest += ["tracking.mlflow._target_=speechtrain.tracking.mlflow.tracker.MlflowTracker", "rerun=0123abcd"]
    one = with_overrides(*honest, "trust=true")
    assert resume_arguments([f"resume={one}"])[: len(honest) + 1] == [*honest, f"resume={one}/checkpoints/last.ckpt"]


def test_a_server_of_the_users_own_is_not_asked_about() -> None:
    stored = "tracking.mlflow.tracking_uri=http://me:hun7er@h/"
    masked = keep([stored])[0]
    one = with_overrides(masked)
    assert masked != stored
    assert resume_arguments([f"resume={one}"])[0] == stored
    one.joinpath(".hydra", "overrides.yaml").write_text("- tracking.mlflow.tracking_uri=http://old/\n")
    now = "tracking.mlflow.tracking_uri=http://new/"
    assert resume_arguments([f"resume={one}", now])[:2] == ["tracking.mlflow.tracking_uri=http://old/", now]


@pytest.mark.parametrize(
    "text", ["", "a: b", "[1]", "[[a]]", "- a: &x 1\n- *x", "\x00", '["\\0"]', "!!python/name:os.system", "[" * 3000, "a" * 2_000_000]
)
def test_overrides_that_no_run_stores_are_a_users_error_that_names_the_file(text: str) -> None:
    one = with_overrides()
    (one / ".hydra" / "overrides.yaml").write_text(text)
    with pytest.raises(UserError, match=r"overrides\.yaml (cannot be read|holds no list)"):
        resume_arguments([f"resume={one}"])
    (one / ".hydra" / "overrides.yaml").write_bytes(b"- a=\xff")
    with pytest.raises(UserError, match=r"overrides\.yaml cannot be read"):
        resume_arguments([f"resume={one}"])


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder of a run"):
        resume_arguments([f"resume={tmp_path}"])


def test_a_run_that_this_user_began_is_resumed_without_a_question_and_a_changed_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    stored = folder / ".hydra" / "overrides.yaml"
    stored.parent.mkdir(parents=True)
    stored.write_text("- model._target_=mine.Encoder\n- tracking.mlflow.tracking_uri=http://server:5000\n")
    with pytest.raises(ConfigError, match=r"mine\.Encoder"):
        resume_arguments([f"resume={folder}"])
    sign(folder)
    assert "model._target_=mine.Encoder" in resume_arguments([f"resume={folder}"])

    with stored.open("a") as file:
        file.write("- data._target_=evil.Corpus\n")
    with pytest.raises(ConfigError, match=r"evil\.Corpus"):
        resume_arguments([f"resume={folder}"])
    stored.write_text("- model._target_=mine.Encoder\n")
    sign(folder)
    (stored.parent / "signature").write_bytes("é".encode())
    with pytest.raises(ConfigError, match=r"mine\.Encoder"):
        resume_arguments([f"resume={folder}"])
    sign(folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user's"))
    with pytest.raises(ConfigError, match=r"mine\.Encoder"):
        resume_arguments([f"resume={folder}"])


def test_the_last_run_is_one_that_came_to_a_checkpoint_or_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, status in (("1", "RUNNING"), ("2", "FAILED")):
        folder = tmp_path / "outputs" / name
        folder.mkdir(parents=True)
        write_run_file(folder, {"started": f"2026-01-0{name}", "status": status})
    (tmp_path / "outputs" / "3").mkdir()
    (tmp_path / "outputs" / "3" / "run.json").write_text("[" * 100_000)

    (tmp_path / "outputs" / "1" / "checkpoints").mkdir()
    (tmp_path / "outputs" / "1" / "checkpoints" / "last.ckpt").touch()
    assert find_run("last")[0] == tmp_path / "outputs" / "1"
    (tmp_path / "outputs" / "2" / "checkpoints").mkdir()
    (tmp_path / "outputs" / "2" / "checkpoints" / "last.ckpt").touch()
    assert find_run("last")[0] == tmp_path / "outputs" / "2"
