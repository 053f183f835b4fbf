"""The value of a key that takes text is the text that was typed, also where Hydra's grammar has another reading of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from speechtrain import compose
from speechtrain.app.arguments import arguments_of, own_and_training_keys
from speechtrain.app.resume import resume_arguments
from speechtrain.config import CONF_DIR
from speechtrain.config.compose import compose_command
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.overrides import text_as_typed, unresolved
from speechtrain.config.schemas.commands import AlignConfig, CompareConfig, ExportConfig, InspectConfig, LmConfig, TranscribeConfig
from speechtrain.errors import ConfigError
from speechtrain.inference.find import find_model
from speechtrain.inference.recordings import find_recordings
from speechtrain.tracking.run_folder import write_run_file

parser = OverridesParser.create()


@settings(max_examples=100, deadline=None)
@given(st.from_regex(r"[0-9a-f]{1,12}|[0-9][0-9_.e+-]{0,10}|[\w./:@ =()%~-]{1,20}", fullmatch=True))
def test_text_is_read_as_it_was_typed(text: str) -> None:
    if text.strip() in ("", "null") or text != text.strip():
        return
    (override,) = text_as_typed([f"rerun={text}"])

    assert parser.parse_override(override).value() == text


@pytest.mark.parametrize("run", ["4598e534", "12345678", "1_000", "00e1", "nan", "true"])
def test_the_first_letters_of_a_run_id_are_no_number(run: str) -> None:
    assert compose([f"rerun={run}"]).rerun == run
    assert arguments_of(ExportConfig, [f"from={run}"])[0].source == run
    assert compose_command(CompareConfig, [f"runs={run},other", f"study=[{run}]"]).runs == [run, "other"]


def test_names_of_our_own_checkpoints_need_no_quotes(tmp_path: Path) -> None:
    name = str(tmp_path / "a day" / "best-epoch=001-val_loss=0.5.ckpt")
    Path(name).parent.mkdir()
    Path(name).touch()

    assert compose([f"init_from={name}"]).init_from == name
    assert arguments_of(ExportConfig, [f"from={name}"])[0].source == name


def test_a_file_whose_name_has_an_equals_sign_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "take=2.wav").touch()

    assert arguments_of(TranscribeConfig, ["take=2.wav"], words="files")[0].files == ["take=2.wav"]


@pytest.mark.parametrize(
    "item",
    [
        "rerun=null",
        "rerun='1e5'",
        "data.root=a,b",
        "init_from=choice(a,b)",
        "output_dir=${hydra:runtime.output_dir}",
        "seed=1e5",
        "-m",
        "data=mix",
    ],
)
def test_what_was_quoted_or_has_a_meaning_of_its_own_stays(item: str) -> None:
    assert text_as_typed([item]) == [item]


def test_what_is_said_and_names_of_files_are_taken_as_they_are_in_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = ["it's four", "four, nine", "a=b.wav", "[0].wav", "[0]", "{a}", "choice(a,b)", 'say "a", "b"', "(x", "1e5", "C:\\x's"]
    for text in texts:
        values = [parser.parse_override(item).value() for item in text_as_typed([f"audio={text}", f"out={text}"], AlignConfig)]
        assert values == [text, text]
        if text not in ("four, nine", "choice(a,b)"):  # which may be a sweep
            assert parser.parse_override(*text_as_typed([f"init_from={text}"])).value() == text
        Path(text).touch()
        assert parser.parse_override(*text_as_typed([f"init_from={text}"])).value() == text
    cfg = arguments_of(AlignConfig, ["audio=[0].wav", "text=it's four, nine", "from=a=b.ckpt"])[0]
    assert (cfg.audio, cfg.text, cfg.source) == ("[0].wav", "it's four, nine", "a=b.ckpt")
    for text in ('abc ${x} "d" it\'s', "${x}", "a ${ b", "\\${x}", "${oc.env:HOME}\\"):
        assert arguments_of(AlignConfig, [f"text={text}"])[0].text == text
    assert arguments_of(LmConfig, ["text=it's 1.txt,2.txt"])[0].text == ["it's 1.txt", "2.txt"]
    assert arguments_of(LmConfig, ["text=four, nine"])[0].text == ["four, nine"]


def test_a_run_in_a_folder_with_quotes_in_its_name_is_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "Anna's runs" / "it's 1"
    (folder / ".hydra").mkdir(parents=True)
    write_run_file(folder, {"started": "2026-01-01"})

    values = [parser.parse_override(item).value() for item in resume_arguments([f"resume={folder}"])]

    assert values == [str(folder), str(folder), None]


def test_what_was_typed_is_recorded_with_its_interpolations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "secret")
    typed = ["seed=${oc.env:SEED}", "tracking.mlflow.run_name=${oc.env:PASSWORD}"]
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        cfg = hydra_compose("config", overrides=typed, return_hydra_config=True)

    assert unresolved(cfg.hydra.overrides.task) == typed


def test_names_that_no_file_can_have_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert arguments_of(TranscribeConfig, [f"out={'x' * 5000}"], words="files")[0].out == "x" * 5000
    with pytest.raises(ConfigError, match="no run 'x"):
        find_model("x" * 5000)
    with pytest.raises(ConfigError, match="empty name"):
        find_recordings([""])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.alphabet=aba", "has 'a' twice"),
        *((f"optimizer.betas={each}", "must be two numbers") for each in ("[0.9,0.99,0.9]", "[0.9]", "[]")),
    ],
)
def test_a_letter_twice_and_betas_that_are_not_two_are_refused(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ExperimentConfig.of(compose(["data=synthetic", override]))


def test_a_command_that_takes_the_keys_of_a_training_has_its_own_among_them() -> None:
    typed = ["out=my folder", "model=mlp", "files=it's 1.wav,2.wav", "+examples=2", "from=runs/a=b", "data.root=out=here", "profile=true"]
    own, overrides = own_and_training_keys(InspectConfig, typed)
    assert (own.out, own.files, own.examples, own.source, own.profile) == ("my folder", ["it's 1.wav", "2.wav"], 2, "runs/a=b", True)
    assert overrides == ["model=mlp", "data.root=out=here"]
    with pytest.raises(ConfigError, match="examples: must be a whole number, received 'four'\n    -> for example examples=4"):
        own_and_training_keys(InspectConfig, ["examples=four"])
    with pytest.raises(ConfigError, match="'from' cannot be read\n    -> write from=VALUE"):
        own_and_training_keys(InspectConfig, ["from"])
