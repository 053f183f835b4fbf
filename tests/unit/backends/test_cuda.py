"""What is computed otherwise on a GPU: kernels, half precision, memory that is full. Without one, the kernels are interpreted."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backend_setup import Recorder, Setup, alone

from speechtrain.backends.failures import OutOfMemoryError
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.backends.torch.encoder import stacks_of
from speechtrain.backends.torch.layers import DepthwiseConv, FeedForward
from speechtrain.training.batch_size import find_batch_seconds

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

INTERPRETED = """
import torch, torch.nn.functional as F
from speechtrain.backends.torch import kernels

torch.manual_seed(0)
for frames, width, size, left in ((70, 96, 31, 15), (5, 40, 15, 14), (130, 70, 7, 3)):
    x, weight = torch.randn(2, frames, width, requires_grad=True), torch.randn(size, width, requires_grad=True)
    found = kernels.depthwise(x, weight, left)
    padded = F.pad(x.transpose(1, 2), (left, size - 1 - left))
    wanted = F.conv1d(padded, weight.t()[:, None], groups=width).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(found)
    for one, other in zip(torch.autograd.grad(found, (x, weight), grad), torch.autograd.grad(wanted, (x, weight), grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from speechtrain.backends.torch import kernels

for kind in ("fp32", "bf16", "fp16"):
    for kernel, tensors, sizes in (
        (kernels._convolve, {"x": kind, "weight": "fp32", "out": kind}, {"KERNEL": 31, "FLIP": True, "BT": 64, "BC": 64}),
        (kernels._correlate, {"x": kind, "grad": kind, "out": "fp32"}, {"KERNEL": 31, "BT": 64, "BC": 64}),
    ):
        signature = {name: f"*{each}" for name, each in tensors.items()} | dict.fromkeys(("frames", "channels", "left"), "i32")
        source = ASTSource(kernel, signature | dict.fromkeys(sizes, "constexpr"), sizes)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "environment"),
    [
        pytest.param(INTERPRETED, {"TRITON_INTERPRET": "1"}, id="numbers"),
        pytest.param(COMPILED, {}, id="machine code", marks=pytest.mark.slow),
    ],
)
def test_the_depthwise_kernels_can_be_compiled_and_give_what_pytorch_does(
    tmp_path: Path, program: str, environment: dict[str, str]
) -> None:
    pytest.importorskip("triton")
    whole = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", program], env=whole, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"causal": True}, {"stride": 2}, {"dilation": 2}])
def test_a_depthwise_convolution_is_that_of_the_cpu(dtype: torch.dtype, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv(72, 15, **options)  # type: ignore[arg-type]
    x = torch.randn(3, 50, 72).to(dtype).float().requires_grad_()
    wanted = conv(x)
    expected = torch.autograd.grad(wanted.square().sum(), [x, *conv.parameters()])
    conv.cuda()
    y = x.detach().cuda().to(dtype).requires_grad_()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        out = conv(y)
    found = torch.autograd.grad(out.float().square().sum(), [y, *conv.parameters()])
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for one, other in zip([out, *found], [wanted, *expected], strict=True):
        torch.testing.assert_close(one.float().cpu(), other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@needs_gpu
@pytest.mark.parametrize("model", ["conformer", "fastconformer", "ebranchformer", "zipformer", "tdnn", "quartznet", "crdnn", "lstm"])
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 2e-3), ("bf16-mixed", 0.1)])
def test_padding_changes_no_output(tmp_path: Path, model: str, precision: str, tolerance: float) -> None:
    setup = Setup(TorchBackend(), tmp_path, f"model={model}", "trainer.epochs=1", f"trainer.precision={precision}")
    built = setup.build()
    setup.train(built)
    batch = next(iter(setup.data.loader("val") or []))
    with torch.autocast("cuda", torch.bfloat16, enabled=precision != "32-true"):
        together = setup.outputs(built, [batch])[0]
        for row, single in enumerate(setup.outputs(built, [alone(batch, row) for row in range(len(batch.ids))])):
            frames = int(single.lengths[0])
            assert abs(together.values[row, :frames] - single.values[0, :frames]).max() < tolerance


@needs_gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_precision_learns_what_the_cpu_learns(tmp_path: Path, precision: str, compiled: bool) -> None:
    options = ["model=conformer", "model.size=tiny", "model.dropout=0", "trainer.epochs=6", "data.batch_size=5", "optimizer.lr=1e-3"]
    losses = {}
    for device, wanted in (("cpu", "32-true"), ("gpu", precision)):
        backend = TorchBackend(compile=compiled and device == "gpu")
        setup = Setup(backend, tmp_path / device, *options, f"trainer.accelerator={device}", f"trainer.precision={wanted}")
        recorder = Recorder()
        setup.train(setup.build(), recorder)
        losses[device] = [epoch["train/loss"] for epoch in recorder.metrics]
    assert losses["gpu"][-1] < 0.8 * losses["gpu"][0]
    assert losses["gpu"][-1] == pytest.approx(losses["cpu"][-1], rel=0.3)


@needs_gpu
def test_a_feed_forward_module_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    module, x = FeedForward(16, 64, 0.0), torch.randn(2, 9, 16)
    wanted = module(x)
    torch.testing.assert_close(module.cuda()(x.cuda()).cpu(), wanted, rtol=1e-3, atol=1e-3)


@needs_gpu
def test_a_batch_that_fills_the_memory_is_named_and_a_size_that_fits_is_found(tmp_path: Path) -> None:
    options = ["data.train_size=3000", "data.batch_seconds=4000", "data.batch_size=3000", "data.num_buckets=1", "model=conformer"]
    backend = TorchBackend()
    setup = Setup(backend, tmp_path, *options, "trainer.epochs=1", "trainer.try_largest=true")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / total)
    try:
        with pytest.raises(OutOfMemoryError, match="does not fit into memory") as caught:
            setup.train(setup.build(), Recorder())
        assert len(caught.value.ids) > 100
        del caught  # its trace holds what filled the memory
        gc.collect()
        torch.cuda.empty_cache()
        model = setup.build()
        found = find_batch_seconds(backend, model, setup.data, setup.task, setup.plan().trainer)
        assert 0 < found < 4000
        setup = Setup(backend, tmp_path / "fits", *options, f"data.batch_seconds={found}", "trainer.epochs=1", "trainer.try_largest=true")
        setup.train(setup.build(), Recorder())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@needs_gpu
def test_recomputed_layers_give_the_same_gradient(tmp_path: Path) -> None:
    losses = []
    for wanted in ("true", "false"):
        options = ["model=conformer", "model.dropout=0", "trainer.epochs=2", "trainer.precision=bf16-mixed"]
        setup = Setup(TorchBackend(), tmp_path / wanted, *options, f"trainer.gradient_checkpointing={wanted}")
        recorder, model = Recorder(), setup.build()
        setup.train(model, recorder)
        assert all(stack.checkpointing == (wanted == "true") for stack in stacks_of(model.encoder))
        losses.append(recorder.metrics[-1]["train/loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
