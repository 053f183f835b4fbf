"""What the Torch models say of themselves is true."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import thinned
from torch import nn

from speechtrain import compose
from speechtrain.backends.torch import losses, optimizers
from speechtrain.backends.torch.encoder import Encoder
from speechtrain.config.build import build

SIZES = {
    "tdnn": [[], ["model.dilations=[1,3]", "model.kernel_size=3", "model.stem_time_strides=[2,2]"]],
    "conformer": [
        *([f"model.subsampling={factor}"] for factor in (2, 4, 8)),
        ["model.chunk_frames=4"],
        ["model.chunk_frames=4", "model.train_chunk_frames=[2,4,null]", "model.left_chunks=2"],
        ["model.size=small", "model.n_layers=1"],
    ],
    "fastconformer": [[], ["model.subsampling=4", "model.n_layers=2"]],
    "ebranchformer": [[], ["model.n_layers=1", "model.gate_multiplier=3"]],
    "zipformer": [
        [],
        [
            "model.rates=[1,4]",
            "model.widths=[32,24]",
            "model.layers=[1,2]",
            "model.heads=[2,4]",
            "model.hidden=[64,32]",
            "model.kernel_sizes=[7,5]",
        ],
    ],
    "crdnn": [[], ["model.rnn=lstm", "model.bidirectional=false", "model.rnn_layers=1"]],
    "quartznet": [[], ["model.subsampling=3", "model.repeats=1", "model.kernel_sizes=[3,5,7]"]],
    "jasper": [[], ["model.time_strides=[3]", "model.dilations=[1,3]", "model.channels=32"]],
    "lstm": [[], ["model.stack=3", "model.chunk_frames=1", "model.layers=1"], ["model.detach_every=null"]],
    "mlp": [[], ["model.stack=3"]],
}
CASES = [case for model, variants in SIZES.items() for case in thinned([(model, options) for options in variants], len(variants))]


def encoder(model: str, options: list[str], input_size: int = 40) -> Any:
    torch.manual_seed(0)
    return build("model", compose([f"model={model}", *options]).model, input_size=input_size).eval()


@pytest.mark.parametrize(("model", "options"), CASES)
def test_an_utterance_alone_equals_itself_in_a_batch(model: str, options: list[str]) -> None:
    net = encoder(model, options)
    lengths = torch.tensor([61, 1, 24, 60, 37])
    features = torch.randn(5, 61, 40)
    features = features * (torch.arange(61)[None, :] < lengths[:, None])[:, :, None]
    with torch.inference_mode():
        together, frames = net(features, lengths)
        assert torch.equal(frames, net.output_lengths(lengths))
        assert together.shape == (5, int(frames.max()), net.output_size)
        for row, length in enumerate(lengths):
            alone, own = net(features[row : row + 1, :length], lengths[row : row + 1])
            assert own[0] == frames[row]
            torch.testing.assert_close(together[row, : own[0]], alone[0, : own[0]], atol=1e-5, rtol=0)


OUTLINES = """
import sys
from speechtrain import compose
from speechtrain.backends.torch.backend import outline
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.tasks.build import build_task
from speechtrain.config.build import build

for model in sys.argv[1:]:
    cfg = ExperimentConfig.of(compose([f"model={model}"]))
    tokenizer = build("tokenizer", cfg.tokenizer, vocabulary=["<blank>", "a"])
    net = outline(cfg.model, build_task(cfg, tokenizer=tokenizer, input_size=40), input_size=40)
    assert all(parameter.is_meta for parameter in net.parameters())
    print(model, *{"sympy", "torch._dynamo"} & set(sys.modules))
"""


@pytest.mark.cold
def test_a_model_is_outlined_without_pytorchs_compiler_which_takes_a_second_to_import() -> None:
    models = [
        "conformer",
        "ebranchformer",
        "zipformer",
    ]  # those with numbers of their own: rotary positions, weights of a normal distribution
    done = subprocess.run([sys.executable, "-c", OUTLINES, *models], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, models), done.stderr


@pytest.mark.parametrize(("model", "options"), CASES)
def test_subsampling_and_receptive_field_are_those_measured(model: str, options: list[str]) -> None:
    net = encoder(model, options)
    frames = 320
    features = torch.randn(1, frames, 40, requires_grad=True)
    out, lengths = net(features, torch.tensor([frames]))
    assert int(lengths[0]) == -(-frames // net.subsampling)
    middle = int(lengths[0]) // 2
    out[0, middle].abs().sum().backward()
    assert features.grad is not None
    seen = features.grad[0].abs().sum(1).nonzero().flatten()
    field = int(seen.max() - seen.min()) + 1
    if net.receptive_field is not None:
        assert field == net.receptive_field
    else:
        assert field > 100


@pytest.mark.parametrize(("model", "options"), CASES)
def test_every_parameter_gets_a_gradient(model: str, options: list[str]) -> None:
    net = encoder(model, options).train()
    out, _ = net(torch.randn(3, 40, 40), torch.tensor([40, 30, 20]))
    out.square().sum().backward()
    silent = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    # a bias in front of a normalisation, or of keys under a softmax, cancels out by itself
    assert not silent


def test_every_model_is_an_encoder() -> None:
    for model in SIZES:
        assert isinstance(encoder(model, []), Encoder)


def log_probs(batch: int, frames: int, size: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(batch, frames, size).log_softmax(-1).requires_grad_()


def test_ctc_agrees_with_a_sum_over_all_alignments() -> None:
    import itertools

    posteriors = log_probs(1, 5, 3)
    loss = losses.ctc(posteriors, torch.tensor([5]), torch.tensor([[1, 1]]), torch.tensor([2]))
    total = torch.tensor(0.0)
    for path in itertools.product(range(3), repeat=5):
        labels = [label for label, _ in itertools.groupby(path) if label != 0]
        if labels == [1, 1]:
            total = total + posteriors[0, range(5), list(path)].sum().exp()
    torch.testing.assert_close(loss[0], -total.log())


def test_a_row_that_cannot_be_aligned_has_loss_0_and_gradient_0_and_leaves_others_alone() -> None:
    posteriors = log_probs(3, 4, 3)
    targets, sizes = torch.tensor([[1, 2, 0], [1, 1, 1], [2, 0, 0]]), torch.tensor([2, 3, 1])
    loss = losses.ctc(posteriors, torch.tensor([4, 4, 0]), targets, sizes)
    assert loss[0] > 0
    assert loss[1] == 0
    assert loss[2] == 0
    loss.sum().backward()
    assert posteriors.grad is not None
    assert posteriors.grad[0].any()
    assert not posteriors.grad[1].any()
    assert not posteriors.grad[2].any()
    single = posteriors.detach()[:1].clone().requires_grad_()
    losses.ctc(single, torch.tensor([4]), targets[:1], sizes[:1]).sum().backward()
    torch.testing.assert_close(single.grad[0], posteriors.grad[0])  # type: ignore[index]


def test_ctc_is_computed_in_float32_under_half_precision() -> None:
    posteriors = log_probs(1, 200, 30).detach()
    lengths, targets, sizes = torch.tensor([200]), torch.randint(1, 30, (1, 20)), torch.tensor([20])
    loss = losses.ctc(posteriors.bfloat16(), lengths, targets, sizes)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_option_makes_its_optimizer(name: str) -> None:
    layer = nn.Linear(2, 2)
    optimizer = build("optimizer", compose([f"optimizer={name}", "optimizer.lr=0.5"]).optimizer, params=layer.parameters())
    assert type(optimizer).__name__.lower() == name
    assert type(optimizer) in (optimizers.Adam, optimizers.AdamW, optimizers.SGD, optimizers.RMSprop)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_equal_views_are_consistent_and_unequal_ones_pull_at_each_other_within_their_length() -> None:
    views = log_probs(2, 6, 4)
    lengths = torch.tensor([4, 4])
    assert losses.consistency(torch.cat([views[:1], views[:1]]), lengths).item() == pytest.approx(0, abs=1e-6)
    found = losses.consistency(views, lengths)
    first, second = views[0, :4], views[1, :4]
    expected = 0.5 * ((second.exp() * (second - first)).sum() + (first.exp() * (first - second)).sum())
    torch.testing.assert_close(found[0], expected)
    found.sum().backward()
    assert views.grad is not None
    assert views.grad[:, :4].any()
    assert not views.grad[:, 4:].any()


@pytest.mark.parametrize("options", [["model.chunk_frames=1"], ["model.chunk_frames=3", "model.left_chunks=2"], ["model.chunk_frames=4"]])
@pytest.mark.parametrize("subsampling", thinned([2, 4, 8], 3))
def test_a_conformer_of_chunks_streams_what_it_gives_for_the_whole_utterance(options: list[str], subsampling: int) -> None:
    net = encoder("conformer", [*options, f"model.subsampling={subsampling}", "model.n_layers=2", "model.kernel_size=5"])
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    features = torch.randn(2, 83, 40)
    with torch.inference_mode():
        whole, _ = net(features, torch.tensor([83, 83]))
        for sizes in ([83], [1] * 83, [7, 30, 2, 44]):
            stream = net.stream()
            for _ in range(2):  # a second signal begins anew
                parts = [stream.push(chunk) for chunk in features.split(sizes, dim=1)]
                torch.testing.assert_close(torch.cat([*parts, stream.finish()], dim=1), whole, atol=1e-5, rtol=0)


def test_a_conformer_of_chunks_sees_nothing_later_than_its_chunk_nor_earlier_than_it_may() -> None:
    net = encoder("conformer", ["model.chunk_frames=3", "model.left_chunks=1", "model.n_layers=1", "model.kernel_size=5"])
    features = torch.randn(1, 120, 40, requires_grad=True)
    out, _ = net(features, torch.tensor([120]))
    out[0, 16].abs().sum().backward()  # of the chunk of frames 15, 16, 17
    assert features.grad is not None
    seen = features.grad[0].abs().sum(1).nonzero().flatten()
    assert int(seen.max()) == 17 * 4  # the last frame of its chunk, through a causal stem
    # its convolution sees frame 12, whose attention sees the chunk from 9, whose stem sees 6 frames back
    assert int(seen.min()) == 9 * 4 - 6


def test_a_batch_is_trained_with_chunks_of_one_of_the_lengths_and_tested_with_the_chosen_one() -> None:
    options = ["model.n_layers=1", "model.kernel_size=5", "model.dropout=0"]
    drawn = encoder("conformer", [*options, "model.chunk_frames=3", "model.train_chunk_frames=[1,3,null]"])
    alone = {size: encoder("conformer", [*options, f"model.chunk_frames={size}"]) for size in (1, 3, 1000)}
    features, lengths = torch.randn(2, 60, 40), torch.tensor([60, 43])
    with torch.inference_mode():
        torch.testing.assert_close(drawn(features, lengths), alone[3](features, lengths))
        for net in (drawn, *alone.values()):
            net.train()
            for module in net.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()
        expected = {size: net(features, lengths)[0] for size, net in alone.items()}
        seen = []
        for _ in range(40):
            out, _ = drawn(features, lengths)
            seen += [size for size, each in expected.items() if torch.allclose(out, each, atol=1e-6)]
    assert len(seen) == 40  # each is that of one length and of no other
    assert set(seen) == {1, 3, 1000}


def test_memory_of_a_stream_does_not_grow_where_its_context_is_limited() -> None:
    stream = encoder("conformer", ["model.chunk_frames=2", "model.left_chunks=3", "model.n_layers=1"]).stream()
    sizes = set()
    with torch.inference_mode():
        for step in range(60):
            stream.push(torch.randn(1, 10, 40))
            if step > 10:
                sizes.add(stream._caches[0]["k"].shape[2])
    assert sizes == {6}


def test_a_conformer_of_whole_utterances_cannot_stream() -> None:
    with pytest.raises(ValueError, match=r"model\.chunk_frames"):
        encoder("conformer", []).stream()


@pytest.mark.parametrize("model", thinned([*SIZES, "wav2vec2"], 3))
@pytest.mark.parametrize("training", [True, False])
def test_in_bfloat16_a_model_gives_nearly_what_it_gives_in_float32(model: str, training: bool) -> None:
    options = ["model.dropout=0", *(["model.mask_prob=0"] if model == "wav2vec2" else [])]
    options += ["model.rnn=lstm"] if model == "crdnn" else []
    size, frames = (1, 12000) if model == "wav2vec2" else (40, 61)
    net = encoder(model, options, size).train(training)
    lengths = torch.tensor([frames, frames // 2])
    features = torch.randn(2, frames, size)
    found = []
    for half in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out, _ = net(features, lengths)
        (out.float() * torch.linspace(-1, 1, net.output_size)).square().sum().backward()
        found.append((out.detach().float(), torch.cat([each.grad.flatten() for each in net.parameters() if each.grad is not None])))
    (exact, exact_gradient), (near, near_gradient) = found
    assert (near - exact).norm() <= 0.05 * exact.norm()
    assert torch.cosine_similarity(near_gradient, exact_gradient, dim=0) >= 0.95
