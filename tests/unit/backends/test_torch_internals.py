"""Private names of Lightning, PyTorch and torchaudio are still as we use them; a failure means that a new version has changed them."""

from __future__ import annotations

import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from conftest import REPOSITORY

from speechtrain.backends.torch import internals


def trainer() -> pl.Trainer:
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(accelerator="cpu", **options)


def test_lightning_tells_other_ranks_of_a_sigterm_where_we_stop_it() -> None:
    made = trainer()
    connector = getattr(made, "_signal_connector", None)
    assert hasattr(connector, "_sigterm_notifier_fn"), "Lightning has changed: Trainer._signal_connector._sigterm_notifier_fn"
    internals.ignore_sigterm_notices(made)
    assert connector._sigterm_notifier_fn(15, None) is None


def test_lightning_counts_the_epochs_that_are_processed() -> None:
    try:
        assert internals.epochs_processed(trainer()) == 0
    except AttributeError as error:
        pytest.fail(f"Lightning has changed: fit_loop.epoch_progress: {error}")


def test_pytorch_moves_and_copies_many_tensors_in_one_call() -> None:
    tensors, ends = [torch.zeros(2), torch.ones(1)], [torch.ones(2), torch.full((1,), 3.0)]
    try:
        internals.lerp_all(tensors, ends, 0.5)
        assert [each.tolist() for each in tensors] == [[0.5, 0.5], [2.0]]
        internals.copy_all(tensors, ends)
        assert [each.tolist() for each in tensors] == [[1.0, 1.0], [3.0]]
    except AttributeError as error:
        pytest.fail(f"PyTorch has changed: {error}")


def test_pytorch_compiles_as_many_shapes_as_it_is_allowed() -> None:
    before = torch._dynamo.config.recompile_limit
    try:
        internals.allow_compiled_shapes(before + 3)
        assert torch._dynamo.config.recompile_limit == before + 3, "PyTorch has changed: torch._dynamo.config.recompile_limit"
    finally:
        torch._dynamo.config.recompile_limit = before


def test_torchmetrics_looks_for_transformers_as_we_hide_it() -> None:
    from lightning_utilities.core.imports import RequirementCache
    from torchmetrics.utilities import imports

    internals.hide_transformers_from_metrics()
    assert not RequirementCache("transformers>=4.4.0"), "lightning_utilities has changed: core.imports._version"
    assert RequirementCache("torch>=2")
    asked = getattr(imports, "_TRANSFORMERS_GREATER_EQUAL_4_4", None)
    assert isinstance(asked, RequirementCache), "torchmetrics has changed: utilities.imports._TRANSFORMERS_GREATER_EQUAL_4_4"


@pytest.mark.slow
@pytest.mark.cold
def test_lightning_starts_without_transformers_where_that_is_installed() -> None:
    script = (
        "import sys; from speechtrain.backends.torch import internals; internals.hide_transformers_from_metrics(); import lightning.pytorch"
    )
    check = "assert 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", f"{script}; {check}"], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


def test_torchaudio_knows_the_file_the_kind_and_the_arguments_of_its_bundles() -> None:
    from torchaudio import pipelines

    try:
        assert internals.bundle_file(pipelines.WAV2VEC2_BASE) == "wav2vec2_fairseq_base_ls960.pth"
        assert internals.bundle_kind(pipelines.HUBERT_BASE) == "Wav2Vec2"
        assert internals.bundle_kind(pipelines.WAVLM_BASE) == "WavLM"
        assert internals.bundle_arguments(pipelines.WAV2VEC2_BASE)["encoder_embed_dim"] == 768
    except AttributeError as error:
        pytest.fail(f"torchaudio has changed: {error}")
