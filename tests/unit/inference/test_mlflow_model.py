"""The class that MLflow runs to serve a model."""

from __future__ import annotations

import importlib.util
import warnings

from speechtrain.inference import mlflow_model


def test_mlflow_finds_nothing_to_warn_of_in_how_a_model_is_called() -> None:
    spec = importlib.util.spec_from_file_location("as_mlflow_loads_it", mlflow_model.__file__)
    assert spec is not None
    assert spec.loader is not None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert [str(each.message) for each in told] == []
