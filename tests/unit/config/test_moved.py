"""Configs that an earlier version stored name classes that have moved since."""

from __future__ import annotations

import importlib
import sys

import pytest
from omegaconf import OmegaConf

from speechtrain import compose
from speechtrain.config.checks import find_problems
from speechtrain.config.moved import MOVED_IMPORTS, MOVED_MODULES, present_name, with_present_name, with_present_names
from speechtrain.config.targets import UnknownTargetError, signature


def test_every_class_of_a_stored_config_is_found_where_it_is_now() -> None:
    old = {
        "data": {"_target_": "speechtrain.data.manifest.Manifest", "parts": [{"_target_": "speechtrain.data.corpora.LibriSpeech"}]},
        "features": {"_target_": "speechtrain.data.features.LogMel", "rate": 8000},
        "model": {"_target_": "my_pkg.speechtrain.data.features.Mine"},
    }
    new = OmegaConf.to_container(with_present_names(OmegaConf.create(old)))
    assert new == {
        "data": {
            "_target_": "speechtrain.data.corpora.manifest.Manifest",
            "parts": [{"_target_": "speechtrain.data.corpora.published.LibriSpeech"}],
        },
        "features": {"_target_": "speechtrain.data.features.features.LogMel", "rate": 8000},
        "model": {"_target_": "my_pkg.speechtrain.data.features.Mine"},
    }


def test_a_class_that_left_its_module_is_found_by_its_own_line() -> None:
    assert present_name("speechtrain.data.folder.SpeechCommands") == "speechtrain.data.corpora.speech_commands.SpeechCommands"
    assert present_name("speechtrain.data.folder.Folder") == "speechtrain.data.corpora.folder.Folder"


def test_a_config_of_this_version_is_left_alone() -> None:
    cfg = compose(["data=synthetic"])
    assert with_present_names(cfg) == cfg


def test_an_override_that_names_a_moved_class_is_rewritten_and_no_other_is() -> None:
    assert with_present_name("data._target_=speechtrain.data.kaldi.Kaldi") == "data._target_=speechtrain.data.corpora.kaldi.Kaldi"
    assert with_present_name("data.root=speechtrain.data.kaldi.Kaldi") == "data.root=speechtrain.data.kaldi.Kaldi"


def test_each_module_of_the_table_is_one_that_exists() -> None:
    for module in MOVED_MODULES.values():
        with pytest.raises(UnknownTargetError, match="has no 'NoSuchClass'"):
            signature(f"{module}.NoSuchClass")


def test_a_config_that_names_the_old_place_of_a_class_is_told_the_new_one() -> None:
    cfg = compose(["data=synthetic"])
    cfg.data._target_ = "speechtrain.data.synthetic.Synthetic"
    (problem,) = find_problems(cfg)
    assert problem.path == "data._target_"
    assert "speechtrain.data.corpora.synthetic.Synthetic" in problem.fix
    assert present_name("speechtrain.data.synthetic.Synthetic") in problem.fix


def test_a_module_that_stored_files_import_is_the_one_of_today_under_its_earlier_name() -> None:
    assert importlib.import_module("speechtrain.recognizer") is importlib.import_module("speechtrain.inference.recognizer")
    assert sys.modules["speechtrain.inference.recognizer"].__name__ == "speechtrain.inference.recognizer"
    assert "speechtrain.recognizer" in MOVED_IMPORTS
    with pytest.raises(ModuleNotFoundError, match="nothing_of_the_kind"):
        importlib.import_module("speechtrain.nothing_of_the_kind")
