"""Packages that only some runs need: the extra that has each is named before any work is done."""

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY

from speechtrain import compose
from speechtrain.app.arguments import arguments_of
from speechtrain.config import extras
from speechtrain.config.compose import compose_command
from speechtrain.config.schemas.commands import ExportConfig, ServeConfig
from speechtrain.errors import ConfigError, UserError
from speechtrain.inference.export import write_exports
from speechtrain.inference.recognizer import Recognizer

Hide = Callable[..., None]

FORMER_NAMES = {"huggingface": "datasets"}


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Make modules look as if they were not installed."""
    is_installed = extras.is_installed

    def hidden(*names: str) -> None:
        monkeypatch.setattr(extras, "is_installed", lambda name: name not in names and is_installed(name))

    return hidden


def test_each_extra_that_is_named_exists() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    named = {*extras.EXTRAS.values(), *extras.LAUNCHERS.values()}
    assert named <= set(project["optional-dependencies"])
    everything = re.findall(r"\w+", " ".join(project["optional-dependencies"]["all"]).partition("[")[2])
    assert set(everything) == set(project["optional-dependencies"]) - {"all", "dev", "ray", *FORMER_NAMES}


def test_an_extra_by_a_name_of_earlier_versions_installs_what_it_did() -> None:
    extras_of = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name: extras_of[name] for name in FORMER_NAMES} == {name: [f"speechtrain[{now}]"] for name, now in FORMER_NAMES.items()}


def test_the_light_group_asks_for_nothing_that_the_project_does_not() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    known = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["serve"]]
    assert set(project["dependency-groups"]["light"]) <= set(known)


@pytest.mark.parametrize(
    ("overrides", "module", "problem"),
    [
        (["decoder=beam", "decoder.lexicon=README.md"], "flashlight", "decoder.lexicon: needs flashlight"),
        (["data.normalize=[lowercase,numbers:en]"], "num2words", "data.normalize: needs num2words"),
        (["model=wav2vec2", "features=waveform"], "torchaudio", "model: needs torchaudio"),
        (["data=huggingface", "data.root=."], "datasets", "data: needs datasets"),
        (["data=hdf5_signals", "data.root=."], "h5py", "data: needs h5py"),
        (["experiment=signal_extraction", "data.save_to=here"], "h5py", "data.save_to: needs h5py"),
        (["model=pretrained", "model.path=a/b", "features=pretrained"], "transformers", "model: needs transformers"),
        (["model=pretrained", "model.path=a/b", "model.lora_rank=2"], "peft", "model: needs peft"),
        (["tokenizer=phoneme"], "espeakng_loader", "tokenizer.lexicon: needs espeakng_loader"),
        (["backend=keras", "export.on_train_end=[onnx]"], "tf2onnx", "export.on_train_end: needs tf2onnx"),
        (["backend=keras"], "keras", "backend.engine: needs keras"),
        (["backend=keras", "backend.engine=jax"], "jax", "backend.engine: needs jax"),
        (["export.on_train_end=[archive,onnx]"], "onnxscript", "export.on_train_end: needs onnxscript"),
        (["data=digits", "data.cache_dir=nowhere"], "espeakng_loader", "data: needs espeakng_loader"),
    ],
)
def test_a_choice_whose_package_is_missing_names_the_extra(hide: Hide, overrides: list[str], module: str, problem: str) -> None:
    hide(module)
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert f"{problem}, which is not installed\n    -> pip install 'speechtrain[{extras.EXTRAS[module]}]'" in str(caught.value)


def test_an_export_names_what_it_lacks_before_the_model_is_loaded(hide: Hide, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide("onnxscript", "onnxruntime")
    monkeypatch.setattr(Recognizer, "of", None)
    with pytest.raises(ConfigError, match=r"format: needs onnxscript, onnxruntime, which are .*\n.*'speechtrain\[onnx\]'"):
        write_exports(*arguments_of(ExportConfig, [f"from={trained}", "format=[archive,onnx]"]))


def test_a_format_of_the_other_backend_is_refused_before_the_training(hide: Hide) -> None:
    hide("ai_edge_litert")
    with pytest.raises(ConfigError, match=r"export\.on_train_end: 'tflite' is not available for a model of backend=torch"):
        compose(["export.on_train_end=[tflite]"])


def test_a_folder_that_is_called_like_a_package_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "elsewhere_package").mkdir()
    (tmp_path / "torch").mkdir()
    assert extras.missing(["elsewhere_package", "torch"]) == ["elsewhere_package"]


def test_a_server_names_what_it_lacks(hide: Hide) -> None:
    hide("prometheus_client")
    with pytest.raises(ConfigError, match=r"serve: needs prometheus_client, .*\n.*'speechtrain\[serve\]'"):
        compose_command(ServeConfig, [])


def test_a_launcher_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.LAUNCHERS, "submitit_elsewhere", "slurm")
    with pytest.raises(ConfigError, match=r"hydra/launcher: submitit_elsewhere is not installed\n.*'speechtrain\[slurm\]'"):
        compose(["hydra/launcher=submitit_elsewhere"])


def test_a_package_without_wheels_for_this_python_says_which_python_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert extras.how_to_install(["flashlight"]).endswith("with Python 3.12: flashlight has no wheels for a later one")
    assert extras.how_to_install(["onnx"]) == "pip install 'speechtrain[onnx]'"


def test_a_failed_import_is_explained_where_the_package_is_known() -> None:
    explained = extras.explain_missing(ModuleNotFoundError("No module named 'lightning.pytorch'", name="lightning.pytorch"))
    assert isinstance(explained, UserError)
    assert "this needs lightning" in str(explained)
    assert "-> pip install speechtrain" in str(explained)
    assert extras.explain_missing(ModuleNotFoundError("No module named 'my_part'", name="my_part")) is None


def test_training_is_refused_where_only_what_transcribes_is_installed(hide: Hide) -> None:
    extras.require_training()
    hide("lightning")
    with pytest.raises(UserError, match=r"this needs lightning, .*\n    -> pip install speechtrain"):
        extras.require_training()


def test_what_only_training_needs_is_what_the_light_group_lacks() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    names = [re.split(r"[<>=]", requirement)[0] for requirement in project["project"]["dependencies"]]
    light = [re.split(r"[<>=]", requirement)[0] for requirement in project["dependency-groups"]["light"]]
    assert {"sklearn" if name == "scikit-learn" else name for name in set(names) - set(light)} == set(extras.TRAINING)
