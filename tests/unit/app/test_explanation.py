"""`--explain KEY`: what a key means, what it accepts, and where it is set; and that every key has a meaning."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from speechtrain.app.explanation import print_explanation
from speechtrain.app.help import print_help
from speechtrain.config.comments import entries_of
from speechtrain.config.composition import CONF_DIR
from speechtrain.config.options import COMMANDS, command_keys, groups, options_of, root_keys
from speechtrain.errors import ConfigError, UserError

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def explained(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What is printed of keys, its lines joined by single spaces."""

    def explain(*words: str, config_dir: Path | None = None) -> str:
        print_explanation(words, None if config_dir is None else str(config_dir))
        return " ".join(capsys.readouterr().out.split())

    monkeypatch.chdir(CONF_DIR.parent)
    return explain


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of configs with a model of the user's own and an experiment."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "narrow.yaml").write_text(
        "# A conformer for doorbells.\ndefaults:\n  - conformer\n  - _self_\n\nd_model: 48\n# Chunks of the doorbell.\nchunk_frames: 8\n"
    )
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "short.yaml").write_text("# @package _global_\n# Two epochs.\ntrainer:\n  epochs: 2\n")
    return tmp_path


def test_a_key_is_told_with_meaning_type_range_default_and_where_it_stands(explained: Callable[..., str]) -> None:
    told = explained("model.chunk_frames", "model=conformer")
    for part in (
        "no encoder frame sees a later chunk than its own",
        "type a whole number, at least 1, or null",
        "default null",
        f"written in conf/model/conformer.yaml:{entries_of(CONF_DIR / 'model/conformer.yaml')['chunk_frames'].line}",
        "checked by Conformer in",
        "also a key of model=lstm: encoder frames a chunk",
    ):
        assert part in told


def test_a_key_that_the_chosen_option_lacks_is_told_for_those_that_have_it(explained: Callable[..., str]) -> None:
    told = explained("model.chunk_frames")
    assert told.startswith("model=tdnn has no key model.chunk_frames; with it:")
    assert told.index("model=conformer") < told.index("model=lstm")


def test_values_of_every_size_of_a_model_are_told(explained: Callable[..., str]) -> None:
    assert "96 (tiny), 144 (small), 256 (medium), 512 (large)" in explained("model.d_model", "model=conformer")


def test_what_sets_a_key_now_is_told(explained: Callable[..., str], own: Path) -> None:
    assert "now 7, set by the command line" in explained("trainer.epochs", "trainer.epochs=7")
    assert f"now 2, set by {own}/experiment/short.yaml:4" in explained("trainer.epochs", "experiment=short", config_dir=own)
    assert "now" not in explained("trainer.epochs").split()


def test_options_of_a_folder_of_the_users_own_are_told(explained: Callable[..., str], own: Path) -> None:
    assert "* narrow A conformer for doorbells. " in explained("model", "model=narrow", config_dir=own)
    told = explained("model.chunk_frames", "model=narrow", config_dir=own)
    assert told.startswith("model.chunk_frames model=narrow Chunks of the doorbell. type a whole number, at least 1, or null default 8")
    assert f"written in {own}/model/narrow.yaml:8" in told
    assert "attention heads" in explained("model.n_heads", "model=narrow", config_dir=own)


def test_a_group_is_told_with_its_options_and_the_keys_of_the_chosen_one(explained: Callable[..., str]) -> None:
    told = explained("decoder", "decoder=beam")
    assert "* beam Prefix beam search" in told
    assert "greedy The best token of each frame" in told
    assert "decoder.beam_size prefixes that are kept in each frame" in told
    assert "tracking.mlflow.patience" in explained("tracking")
    assert "Tree-structured Parzen estimator" in explained("hydra/sweeper/sampler")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("seed", "data order, initial weights, dropout and augmentation follow from it"),
        ("trainer.early_stopping", "trainer.early_stopping.patience epochs without improvement"),
        ("data.on_shared.audio", "the same samples type one of allow, warn, error default warn"),
        ("hydra.sweeper.n_trials", "type a whole number, at least 1, or null"),
        ("hydra.sweeper.sampler.n_startup_trials", "random ones before the first estimate type a whole number"),
        ("hydra.run.dir", "its folder"),
        ("evaluate.nbest", "evaluate.nbest speechtrain evaluate texts of each utterance"),
        ("serve", "serve.port 0: any that is free"),
        ("export.format", "speechtrain export"),
    ],
)
def test_keys_of_runs_sweeps_and_commands_are_told_too(explained: Callable[..., str], name: str, part: str) -> None:
    assert part in explained(name)


def test_a_mistake_is_answered_with_the_nearest_key_and_exit_code_2(command: Command, explained: Callable[..., str]) -> None:
    done = command("--explain", "model.chunk_frame", "model=conformer")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "model.chunk_frame: there is no such key",
        "    -> did you mean 'model.chunk_frames' or 'model.train_chunk_frames'?",
    ]
    with pytest.raises(UserError, match=r"did you mean 'evaluate\.nbest'"):
        explained("evaluate.nbst")
    with pytest.raises(UserError, match=r"lr: there is no such key\n    -> did you mean 'optimizer\.lr'\?"):
        explained("lr")
    with pytest.raises(UserError, match="there is: augment, backend"):
        explained("zzz")
    with pytest.raises(ConfigError, match="did you mean 'conformer'"):
        explained("model.d_model", "model=conformr")
    with pytest.raises(UserError, match="no key is named"):
        explained("model=conformer", "seed=1")
    with pytest.raises(UserError, match="--config-dir: no such folder"):
        explained("model", config_dir=Path("nothere"))


def test_a_command_explains_its_own_keys(command: Command) -> None:
    told = command("evaluate", "--explain", "nbest").stdout
    assert told.startswith("evaluate.nbest  speechtrain evaluate\n")
    words = [sys.executable, "-m", "speechtrain.evaluate", "--explain", "nbest"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == told


def test_help_lists_commands_first_and_the_options_of_a_folder_of_the_users_own(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_help(str(own))
    told = capsys.readouterr().out
    assert told.index("evaluate") < told.index("--explain KEY") < told.index("matchboxnet")
    assert "A conformer for doorbells." in told
    with pytest.raises(UserError, match="no such folder"):
        print_help("nothere")


def test_every_key_has_a_meaning() -> None:
    """A key without one gets a comment behind its value, in the first file of `conf/` that has it."""
    options = [option for group in groups([CONF_DIR]) for option in options_of(group, [CONF_DIR])]
    named = {f"{option.group}={option.name} {name}": key for option in options for name, key in option.keys.items()}
    named |= {f"{command} {name}": key for command in COMMANDS for name, key in command_keys(command).items()} | root_keys()
    assert {name for name, key in named.items() if not key.entry.comment} == {"hydra"}
    assert len(named) > 500


def test_every_option_says_what_it_is() -> None:
    options = [option for group in groups([CONF_DIR]) for option in options_of(group, [CONF_DIR])]
    assert {f"{option.group}={option.name}" for option in options if len(option.summary.split()) < 2} == set()


def test_comments_behind_and_above_a_key_are_read_and_headings_are_not(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "# What the file is.\n\na: 1 # one\n# and a half\nb: [1, 2] # '#' is no end\n\n"
        "# Above.\nc: 'x # y'\nd:\n  - 1\ne: # node\n  f: null # inside\n"
    )
    assert {name: (entry.text, entry.comment) for name, entry in entries_of(file).items()} == {
        "a": ("1", "one and a half"),
        "b": ("[1, 2]", "'#' is no end"),
        "c": ("'x # y'", "Above."),
        "d": ("- 1", ""),
        "e": ("", "node"),
        "e.f": ("null", "inside"),
    }


def test_an_option_alone_is_explained_with_its_group(explained: Callable[..., str]) -> None:
    assert "* conformer" in explained("model=conformer")


def test_an_option_is_described_by_its_whole_first_sentence(explained: Callable[..., str]) -> None:
    assert "once they are among the best." in explained("hydra/sweeper/pruner")
