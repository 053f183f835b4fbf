"""Layers made for speed give what the layers they stand in for give, and so do their gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speechtrain.backends.torch import attention as attention_module
from speechtrain.backends.torch import layers, models
from speechtrain.backends.torch.attention import attend_in_bfloat16, rotate
from speechtrain.backends.torch.encoder import frame_mask
from speechtrain.backends.torch.layers import DepthwiseConv, Dropout, FeedForward, convolve_one_channel, masked_relu
from speechtrain.backends.torch.models.conformer import Attention


def test_dropout_keeps_the_mean_and_its_gradient_passes_where_values_did() -> None:
    torch.manual_seed(0)
    x = torch.ones(300, 1001, requires_grad=True)
    out = Dropout(0.1)(x)
    threshold = 26  # 0.1 of 256
    assert out.unique().tolist() == [0, pytest.approx(256 / (256 - threshold))]
    assert (out == 0).double().mean().item() == pytest.approx(threshold / 256, abs=3e-3)
    out.sum().backward()
    assert torch.equal(x.grad, out)  # type: ignore[arg-type]


def test_dropout_follows_the_seed_and_is_nothing_in_evaluation() -> None:
    x, dropout = torch.ones(50, 7), Dropout(0.3)
    torch.manual_seed(1)
    first = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(dropout(x), first)
    assert dropout.eval()(x) is x


def test_a_probability_below_a_byte_is_drawn_exactly() -> None:
    torch.manual_seed(0)
    out = Dropout(0.001)(torch.ones(1000, 1000))
    assert (out == 0).double().mean().item() == pytest.approx(0.001, rel=0.2)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 3}, {"causal": True}, {"causal": True, "dilation": 2, "bias": True}])
def test_a_depthwise_convolution_is_that_of_pytorch(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv(6, 5, **options)  # type: ignore[arg-type]
    x = torch.randn(3, 20, 6, requires_grad=True)
    out = conv(x)
    context = 4 * conv.dilation[0]
    before = context if options.get("causal") else context // 2
    padded = F.pad(x.transpose(1, 2), (before, context - before))
    wanted = F.conv1d(padded, conv.weight, conv.bias, stride=conv.stride, dilation=conv.dilation, groups=6).transpose(1, 2)
    torch.testing.assert_close(out, wanted)
    given = [x, *conv.parameters()]
    for found, expected in zip(
        torch.autograd.grad(out.square().sum(), given), torch.autograd.grad(wanted.square().sum(), given), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("before", [0, 3, 8, 16])
def test_the_gradient_of_a_long_kernel_by_products_is_its_gradient(before: int) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv(3, 17, causal=before == 16).double()
    x = torch.randn(2, 37, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: layers._Depthwise.apply(*given, before), (x, conv.weight))
    if before in (8, 16):
        torch.testing.assert_close(conv(x), conv.eval()(x))


@pytest.mark.parametrize(("stride", "padding"), [((2, 2), (1, 1)), ((1, 2), (0, 1))])
def test_a_convolution_of_one_channel_by_patches_is_one(stride: tuple[int, int], padding: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 4, 3, stride=stride, padding=padding).double()
    x = torch.randn(2, 1, 9, 8, dtype=torch.float64)
    found, wanted = convolve_one_channel(x, conv), conv(x)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(wanted)
    parameters = [conv.weight, conv.bias]
    for gradient, own in zip(
        torch.autograd.grad((found * weights).sum(), parameters), torch.autograd.grad((wanted * weights).sum(), parameters), strict=True
    ):
        torch.testing.assert_close(gradient, own)
    with torch.autocast("cpu", torch.bfloat16):
        half = convolve_one_channel(x.float(), conv.float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), wanted, atol=0.03, rtol=0.03)


def test_a_feed_forward_module_in_blocks_is_the_one_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_ROWS", 4)
    torch.manual_seed(0)
    module = FeedForward(6, 10, 0.0)
    x = torch.randn(2, 9, 6, requires_grad=True)
    out = module(x)
    wanted = x + 0.5 * nn.Sequential.forward(module, x)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(module.eval()(x), wanted)
    given = [x, *module.parameters()]
    for found, expected in zip(torch.autograd.grad(out.exp().sum(), given), torch.autograd.grad(wanted.exp().sum(), given), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_gradient_of_a_feed_forward_module_with_dropout_is_that_of_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_ROWS", 3)
    module = FeedForward(4, 8, 0.3, factor=0.7).double()

    def seeded(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return module(x)

    assert torch.autograd.gradcheck(seeded, (torch.randn(1, 7, 4, dtype=torch.float64, requires_grad=True), *module.parameters()))
    x = torch.randn(1, 7, 4, dtype=torch.float64)
    assert not torch.allclose(seeded(x), module.eval()(x))


def test_a_feed_forward_module_drops_hidden_values_and_outputs() -> None:
    torch.manual_seed(0)
    module = FeedForward(200, 8, 0.5, factor=1.0)
    nn.init.zeros_(module[4].weight)
    nn.init.ones_(module[4].bias)
    outputs = module(torch.zeros(1, 500, 200))
    assert set(outputs.unique().tolist()) == {0, 2}
    nn.init.ones_(module[4].weight)
    nn.init.zeros_(module[4].bias)
    nn.init.zeros_(module[1].weight)
    nn.init.ones_(module[1].bias)
    kept = (module(torch.zeros(1, 500, 200)).amax(-1) / (2 * 2 * F.silu(torch.ones(())))).round()
    assert set(kept.flatten().tolist()) >= {2, 3, 4, 5, 6}  # of eight hidden values, half on the average


@pytest.mark.parametrize("make", [lambda: FeedForward(16, 32, 0.3), lambda: Dropout(0.3)])
def test_what_is_dropped_in_half_precision_is_dropped_in_single(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        x = torch.linspace(-2, 2, 288).view(2, 9, 16).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = module(x)
        found.append([out.float(), *(grad.float() for grad in torch.autograd.grad(out.float().square().sum(), [x, *module.parameters()]))])
    for single, half in zip(*found, strict=True):
        assert (single - half).norm() < 0.05 * single.norm()


def test_under_autocast_a_feed_forward_module_multiplies_in_half_precision() -> None:
    torch.manual_seed(0)
    module = FeedForward(16, 32, 0.0)
    x = torch.randn(2, 9, 16, requires_grad=True)
    whole = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(x)
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, atol=2e-2, rtol=2e-2)
    half.sum().backward()
    assert module[1].weight.grad.dtype == torch.float32


def test_rotation_keeps_lengths_and_depends_on_distances_only() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 1, 8).expand(1, 1, 12, 8)
    angles = torch.arange(12)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    rotation = torch.stack([angles.cos(), angles.sin()])
    turned = rotate(x, rotation)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    products = turned[0, 0] @ turned[0, 0].t()
    torch.testing.assert_close(products[:-1, :-1], products[1:, 1:])
    needs = x.double().clone().requires_grad_()
    torch.testing.assert_close(rotate(needs, rotation.double()).float(), turned)
    assert torch.autograd.gradcheck(lambda given: rotate(given, rotation.double()), (needs,))


@pytest.mark.parametrize("lengths", [None, [70, 31, 1]])
def test_attention_by_matrix_units_is_attention(monkeypatch: pytest.MonkeyPatch, lengths: list[int] | None) -> None:
    monkeypatch.setattr(attention_module, "has_matrix_units", lambda: True)
    torch.manual_seed(0)
    encoder = models.Conformer(20, 24, 1, 4, 2, 5, 4, 8, 0.0)
    attention = Attention(24, 4, 0.0)
    x = torch.randn(3, 70, 24)
    attend = None if lengths is None else frame_mask(torch.tensor(lengths), 70)[:, None, None, :]
    rotation = encoder.rotation(0, 70, torch.float32)
    found = {}
    for way in ("exact", "fast"):
        given = x.clone().requires_grad_()
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "fast"):
            assert (attend_in_bfloat16(given, attention.qkv, 4, attend, rotation) is not None) == (way == "fast")
            out = attention(given, attend, rotation)
        (out.float() * torch.linspace(-1, 1, 24)).sum().backward()
        found[way] = [out.float(), given.grad, *(each.grad for each in attention.parameters())]
    for exact, fast in zip(found["exact"], found["fast"], strict=True):
        assert (fast - exact).norm() <= 0.02 * exact.norm()


def test_attention_whose_scores_are_large_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "has_matrix_units", lambda: True)
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 48)
    x = torch.randn(1, 9, 16)
    rotation = torch.ones(2, 9, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend_in_bfloat16(x, linear, 2, None, rotation) is not None
        assert attend_in_bfloat16(20 * x, linear, 2, None, rotation) is None
        assert attend_in_bfloat16(torch.randn(1, 513, 16), linear, 2, None, torch.ones(2, 513, 4)) is None
        assert attend_in_bfloat16(x, linear, 2, torch.ones(1, 1, 9, 9).bool(), rotation) is None


def test_what_is_masked_before_a_relu_is_0_and_has_no_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    mask = (torch.arange(6) < 4).double()
    assert torch.equal(masked_relu(x.clone(), mask), torch.relu(x * mask))
    assert torch.equal(masked_relu(x.detach().clone(), mask), torch.relu(x * mask))
    assert torch.autograd.gradcheck(lambda given: masked_relu(given.clone(), mask), (x,))


def test_a_feed_forward_module_drops_values_at_a_probability_below_a_byte() -> None:
    torch.manual_seed(0)
    module = FeedForward(500, 4, 0.001, factor=1.0)
    nn.init.zeros_(module[4].weight)
    nn.init.ones_(module[4].bias)
    assert (module(torch.zeros(1, 1000, 500)) == 0).double().mean().item() == pytest.approx(0.001, rel=0.2)


def test_gradients_are_laid_out_as_their_values_are() -> None:
    x = torch.randn(2, 3, 5, requires_grad=True)
    y = x * 1
    seen = []
    y.register_hook(lambda gradient: seen.append((gradient.stride(), gradient.clone())))
    weight = torch.randn(2, 5, 3)
    (layers.contiguous_gradient(y).transpose(1, 2) * weight).sum().backward()
    assert seen[0][0] == (15, 5, 1)
    assert torch.equal(seen[0][1], weight.transpose(1, 2))
    assert torch.equal(x.grad, weight.transpose(1, 2))  # type: ignore[arg-type]
    plain = torch.randn(2, 3)
    assert layers.contiguous_gradient(plain) is plain


def test_a_masked_relu_has_its_gradient_also_when_that_comes_in_another_layout() -> None:
    x = torch.randn(2, 4, 5, 3)
    mask = (torch.arange(5) < 3).float()[None, None, :, None]
    weight = torch.randn(2, 5, 3, 4)
    grads = []
    for relu in (masked_relu, lambda value, mask: torch.relu(value * mask)):
        own = x.clone().requires_grad_()
        (relu(own * 1, mask).permute(0, 2, 3, 1) * weight).sum().backward()
        grads.append(own.grad)
    assert torch.equal(grads[0], grads[1])
