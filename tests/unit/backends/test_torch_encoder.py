"""What happens between the layers of Torch's encoders: layer dropout, the loss in the middle, gradient checkpointing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backend_setup import Recorder, Setup
from torch import nn

from speechtrain.backends.base import Backend
from speechtrain.backends.torch import losses, ops
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.backends.torch.encoder import Stack, stacks_of
from speechtrain.backends.torch.lightning_module import TrainingModule
from speechtrain.errors import ConfigError


@pytest.fixture
def backend() -> Backend:
    return TorchBackend(threads=1)


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_utterances_pass_by_layers_at_random_and_in_training_only() -> None:
    torch.manual_seed(0)
    stack = Stack((Twice() for _ in range(4)), 3)
    stack.layer_dropout = 0.5
    rows = stack(torch.ones(2000, 1, 3))[:, 0]
    assert torch.equal(rows[:, 0], rows[:, 2])
    passed = 4 - rows[:, 0].log2()
    assert passed.mean().item() == pytest.approx(2, abs=0.1)
    assert set(passed.tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(stack.eval()(torch.ones(5, 1, 3)), 16 * torch.ones(5, 1, 3))


@pytest.mark.parametrize("model", ["tdnn", "conformer"])
def test_the_loss_in_the_middle_goes_through_the_same_head(backend: Backend, tmp_path: Path, model: str) -> None:
    options = [f"model={model}", "model.dropout=0", "trainer.layer_dropout=0"]
    setup = Setup(backend, tmp_path, *options, "task.intermediate=0.25")
    built = setup.build()
    nn.init.normal_(built.head.weight)
    built.tap()
    loader = setup.data.loader("train")
    assert loader is not None
    batch = next(iter(loader))
    module = TrainingModule(built, setup.task, setup.plan(), (), loader)
    built.train()
    _, values, _ = module.batch_loss(batch, module.device)
    stack = built._tapped[0]
    middle = stack.tapped
    assert middle is not None
    assert middle.shape == (len(batch.ids), values.shape[1], built.encoder.output_size)
    stack.taps = False
    whole = list(stack)
    nn.ModuleList.__init__(stack, whole[: (len(whole) + 1) // 2])  # the encoder ends there
    torch.testing.assert_close(module.batch_loss(batch, module.device)[1], built._values(middle))


@pytest.mark.parametrize("model", ["mlp", "quartznet"])
def test_a_model_without_such_a_middle_refuses(backend: Backend, tmp_path: Path, model: str) -> None:
    setup = Setup(backend, tmp_path, f"model={model}", "task.intermediate=0.3")
    with pytest.raises(ConfigError, match="needs a middle of the encoder"):
        setup.train(setup.build())


def test_both_losses_are_trained_on_with_their_shares_and_only_the_last_is_reported(backend: Backend, tmp_path: Path) -> None:
    options = ["model=tdnn", "model.dropout=0", "trainer.max_steps=1", "trainer.gradient_clip_val=null"]
    norms, reported = {}, {}
    for share in (0, 0.25, 0.5):
        setup = Setup(backend, tmp_path / str(share), *options, f"task.intermediate={share}")
        recorder = Recorder()
        setup.train(setup.build(), recorder)
        norms[share], reported[share] = recorder.metrics[0]["train/grad_norm"], recorder.metrics[0]["train/loss"]
    assert reported[0.25] == pytest.approx(reported[0], rel=1e-5)
    assert norms[0.25] != pytest.approx(norms[0], rel=1e-3)
    assert norms[0.5] != pytest.approx(norms[0.25], rel=1e-3)


def test_label_smoothing_adds_the_divergence_from_equal_probabilities(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "task.label_smoothing=0.1")
    torch.manual_seed(0)
    values = torch.randn(3, 6, 4).log_softmax(-1)
    lengths = torch.tensor([6, 4, 1])
    ctc = losses.ctc(values, lengths, torch.tensor([[1, 2], [3, 3], [1, 2]]), torch.tensor([2, 2, 2]))
    found = setup.task.regularised(ops, ctc, values, lengths)
    for row, length in enumerate(lengths[:2]):
        divergence = sum(-values[row, frame].mean() for frame in range(length))
        torch.testing.assert_close(found[row], 0.9 * ctc[row] + 0.1 * divergence)
    assert found[2] == ctc[2] == 0  # cannot be aligned


@pytest.mark.parametrize("model", ["conformer", "ebranchformer", "zipformer", "tdnn"])
def test_gradient_checkpointing_changes_no_number(backend: Backend, tmp_path: Path, model: str) -> None:
    found = {}
    for checkpointing in (False, True):
        options = [f"model={model}", "trainer.max_steps=3", "trainer.layer_dropout=0.2", f"trainer.gradient_checkpointing={checkpointing}"]
        setup = Setup(backend, tmp_path / str(checkpointing), *options)
        recorder, built = Recorder(), setup.build()
        setup.train(built, recorder)
        assert all(stack.checkpointing == checkpointing for stack in stacks_of(built.encoder))
        found[checkpointing] = recorder.metrics
    for plain, again in zip(found[False], found[True], strict=True):
        assert again == pytest.approx(plain, rel=1e-5)


def test_gradient_checkpointing_keeps_only_what_goes_into_a_layer() -> None:
    kept = {}
    for checkpointing in (False, True):
        stack = Stack((nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 8)) for _ in range(3)), 8)
        stack.checkpointing = checkpointing
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor
        ):  # type: ignore[misc]
            stack(torch.randn(10, 4, 8, requires_grad=True))
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 4


@pytest.mark.parametrize("model", ["crdnn", "ebranchformer", "fastconformer", "lstm", "quartznet", "tdnn", "wav2vec2", "zipformer"])
def test_every_weight_has_a_dimension_that_can_be_divided_between_devices(backend: Backend, tmp_path: Path, model: str) -> None:
    options = ["features=waveform"] if model == "wav2vec2" else []
    built = Setup(backend, tmp_path, f"model={model}", *options).build()
    assert not [name for name, parameter in built.named_parameters() if parameter.ndim == 0]


def test_a_weight_that_cannot_be_divided_is_named(backend: Backend, tmp_path: Path) -> None:
    setup = Setup(backend, tmp_path, "model=mlp", "trainer.strategy=fsdp", "trainer.devices=2")
    model = setup.build()
    model.encoder.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ConfigError, match=r"trainer.strategy: is fsdp, and encoder.scale is a single number"):
        setup.train(model)
