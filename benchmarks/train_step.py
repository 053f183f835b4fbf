"""Seconds of a training step, beside torchaudio's conformer of the same size run in turn: `python benchmarks/train_step.py`.

`--others` measures the conformers of SpeechBrain, Transformers and NeMo besides, of those that are installed; each has as many layers of
the same width as ours, its own attention with relative positions, and the masks that keep padding out.

`--engine tensorflow|jax|torch` measures the same models on Keras instead, each beside ours on PyTorch; `--jit` with XLA. An engine is
chosen once a process, so each has a run of its own. The first step, which traces or compiles, is told apart.

`--device cuda` measures on a GPU, where the product of two matrices is timed beside; `--compile` measures ours as `backend.compile=true`
makes it, besides. With both, or with `--bf16`, a last column says which share of the GPU's matrix units the step keeps busy: the
multiplications and additions of its matrix products, convolutions and attention, the gradient counted as two passes, against what the maker
promises for dense matrices.

Forward, CTC, backward, clip and AdamW on made-up features; threads pinned; wall and CPU time, best of several rounds, in turn, so that
a busy machine slows both alike. The figure to quote is the ratio.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchaudio.models import Conformer as TorchaudioConformer

from speechtrain.backends.torch import losses, models
from speechtrain.backends.torch.encoder import compile_layers, frame_mask
from speechtrain.backends.torch.speech_model import SpeechModel
from speechtrain.data.text.tokenizers import ListTokenizer
from speechtrain.decode.greedy import GreedyDecoder
from speechtrain.tasks.ctc import Ctc


class Reference(torch.nn.Module):
    """An encoder (B, T', D) -> (B, T', D) behind the same stem and head as ours."""

    def __init__(self, ours: models.Conformer, encoder: torch.nn.Module, classes: int) -> None:
        super().__init__()
        self.stem = ours.stem
        self.encoder = encoder
        self.head = torch.nn.Linear(ours.output_size, classes)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, F) -> (B, T', V)."""
        x, lengths = self.stem(features, lengths)
        x, lengths = self.encoder(x, lengths)
        return self.head(x).log_softmax(-1), lengths


class SpeechBrain(torch.nn.Module):
    """SpeechBrain's conformer with its positions."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int, kernel: int) -> None:
        from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
        from speechbrain.nnet.attention import RelPosEncXL

        super().__init__()
        self.positions = RelPosEncXL(width)
        self.encoder = ConformerEncoder(layers, width, hidden, heads, kernel, dropout=0.1)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T', D) -> (B, T', D)."""
        outside = ~frame_mask(lengths, x.shape[1])
        return self.encoder(x, src_key_padding_mask=outside, pos_embs=self.positions(x))[0], lengths


class Transformers(torch.nn.Module):
    """The conformer of Transformers' Wav2Vec2Conformer."""

    def __init__(self, width: int, heads: int, hidden: int, layers: int, kernel: int) -> None:
        from transformers import Wav2Vec2ConformerConfig
        from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoder

        super().__init__()
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": hidden}
        dropouts = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "conformer_conv_dropout"), 0.1)
        others = {"conv_depthwise_kernel_size": kernel, "position_embeddings_type": "relative", "layerdrop": 0.0, "hidden_act": "swish"}
        self.encoder = Wav2Vec2ConformerEncoder(Wav2Vec2ConformerConfig(**sizes, **dropouts, **others))

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T', D) -> (B, T', D)."""
        return self.encoder(x, attention_mask=frame_mask(lengths, x.shape[1])).last_hidden_state, lengths


class NeMo(torch.nn.Module):
    """NeMo's conformer, which has a stem of its own kind, with as many channels as ours."""

    def __init__(self, mels: int, width: int, heads: int, layers: int, kernel: int, classes: int) -> None:
        from nemo.collections.asr.modules import ConformerEncoder

        super().__init__()
        stem = {"subsampling": "striding", "subsampling_factor": 4, "subsampling_conv_channels": 32}
        self.encoder = ConformerEncoder(mels, layers, width, **stem, n_heads=heads, conv_kernel_size=kernel)
        self.head = torch.nn.Linear(width, classes)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, F) -> (B, T', V)."""
        x, lengths = self.encoder(audio_signal=features.transpose(1, 2), length=lengths)
        return self.head(x.transpose(1, 2)).log_softmax(-1), lengths


def others(
    ours: Callable[[], models.Conformer], mels: int, heads: int, hidden: int, layers: int, kernel: int, classes: int
) -> dict[str, torch.nn.Module]:
    """Other libraries' conformers, of those that can be imported."""
    width = ours().output_size
    kinds: dict[str, Callable[[], torch.nn.Module]] = {
        "speechbrain": lambda: Reference(ours(), SpeechBrain(width, heads, hidden, layers, kernel), classes),
        "transformers": lambda: Reference(ours(), Transformers(width, heads, hidden, layers, kernel), classes),
        "nemo": lambda: NeMo(mels, width, heads, layers, kernel, classes),
    }
    found = {}
    for name, make in kinds.items():
        try:
            found[f"{name} conformer"] = make()
        except (ImportError, TypeError) as error:  # overrides of another Lightning's methods are a TypeError
            print(f"{name} is left out: {error}")
    return found


def ctc(classes: int) -> Ctc:
    """The task for so many labels."""
    return Ctc(ListTokenizer(vocabulary=["", *map(str, range(1, classes))]), GreedyDecoder())


def stepper(model: torch.nn.Module, batch: int, frames: int, mels: int, classes: int, device: str = "cpu") -> Callable[[], None]:
    """A function that does one training step."""
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    lengths = lengths_of(batch, frames).to(device)
    features = torch.randn(batch, frames, mels, device=device)
    labels = frames // 12
    targets = torch.randint(1, classes, (batch, labels), device=device)
    target_lengths = torch.full((batch,), labels, device=device)

    def step() -> None:
        log_probs, out_lengths = model(features, lengths)
        loss = losses.ctc(log_probs, out_lengths, targets, target_lengths).sum() / targets.numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def lengths_of(batch: int, frames: int) -> torch.Tensor:
    """Input frames (B,): the shortest utterance is four fifths of the longest."""
    return torch.linspace(0.8 * frames, frames, batch).long()


def in_bfloat16(step: Callable[[], None], device: str) -> Callable[[], None]:
    """The same step under autocast."""

    def run() -> None:
        with torch.autocast(device, torch.bfloat16):
            step()

    return run


def compiled(model: SpeechModel) -> SpeechModel:
    """A copy as `backend.compile=true` trains it."""
    model = copy.deepcopy(model)
    compile_layers(model.encoder)
    return model


def operations(model: SpeechModel, batch: int, frames: int, mels: int) -> float:
    """Floating-point operations of a step on matrix units; padding is multiplied too, but seen by no attention."""
    model = copy.deepcopy(model).cpu().eval()
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model(torch.zeros(1, frames, mels), torch.tensor([frames]))
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for name, count in counts.items() if "attention" in name)
    seen = float((lengths_of(batch, frames) / frames).square().sum())
    return 3 * (batch * (sum(counts.values()) - attention) + seen * attention)


PROMISED = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Operations a second in bfloat16, dense, of the SXM cards (NVIDIA's data sheets)."""


def ceiling(size: int = 8192) -> float:
    """Operations a second of the product of two matrices of this size in bfloat16, on the GPU."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(8):
        torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def keras_stepper(engine: str, jit: bool, name: str, arguments: tuple[object, ...], size: tuple[int, int, int, int]) -> Callable[[], None]:
    """A function that does one training step of a Keras model."""
    from speechtrain.backends.keras import engine as engines

    keras = engines.start(engine, torch.get_num_threads())
    from speechtrain.backends.keras import models, optimizers
    from speechtrain.backends.keras.speech_model import SpeechModel

    batch, frames, mels, classes = size
    task = ctc(classes)
    model = SpeechModel(getattr(models, name)(mels, *arguments), asdict(task.head), mels)
    model.make_weights()
    step = model.step(task, compiled=jit or engine == "jax")
    step.compile(optimizer=optimizers.measured(optimizers.AdamW(1e-4), 5.0, by_norm=True, accumulate=1), jit_compile=jit or engine == "jax")
    labels = frames // 12
    data = {
        "features": np.random.default_rng(0).standard_normal((batch, frames, mels), dtype=np.float32),
        "feature_lengths": np.linspace(0.8 * frames, frames, batch).astype(np.int32),
        "targets": np.random.default_rng(0).integers(1, classes, (batch, labels)).astype(np.int32),
        "target_lengths": np.full(batch, labels, dtype=np.int32),
    }
    assert keras.config.backend() == engine
    return lambda: step.train_on_batch(data)


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Seconds of the first step, and the best wall and CPU seconds of the others, all in turn."""
    first: dict[str, float] = {}
    best: dict[str, tuple[float, float]] = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        first[name] = time.perf_counter() - start
    for _ in range(rounds):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = min(best.get(name, (wall, cpu)), (wall, cpu))
    return first, best


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of an utterance")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--stem", type=int, default=32, help="channels of the conformers' stem")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="ours compiled besides")
    parser.add_argument("--models", nargs="*", help="conformer, crdnn, ...; all if none is named")
    parser.add_argument("--engine", choices=["tensorflow", "jax", "torch"])
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--others", action="store_true", help="SpeechBrain, Transformers and NeMo, where they are installed")
    parser.add_argument("--bf16", action="store_true", help="each model under bfloat16 autocast besides")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    mels, classes, heads, kernel, frames = 80, 32, given.heads, 31, round(100 * given.seconds)
    size = (given.batch, frames, mels, classes)
    hidden = 4 * given.width
    ours: dict[str, tuple[object, ...]] = {
        "Conformer": (given.width, given.layers, heads, 4, kernel, 4, given.stem, 0.1),
        "Crdnn": ([16, 32], [2, 2], "gru", 128, 2, True, 128, 0.1),
        "Tdnn": ([16, 32], [2, 1], 96, 5, [1, 1, 2, 2], 0.1),
        "QuartzNet": (96, 11, 2, [96, 96, 128], [11, 15, 19], 2, 160, 15, 2, 0.1),
        "Lstm": (192, 2, 2, 20, 1, 0.1),
    }
    chosen = {name: arguments for name, arguments in ours.items() if given.models is None or name.lower() in given.models}
    print(f"{given.batch} x {given.seconds:g} s, {given.threads} threads, best of {given.rounds}")
    if given.engine is None:
        built = {
            name.lower(): SpeechModel(getattr(models, name)(mels, *arguments), ctc(classes).head) for name, arguments in chosen.items()
        }

        def conformer() -> models.Conformer:
            return models.Conformer(mels, *ours["Conformer"])

        theirs = TorchaudioConformer(given.width, heads, hidden, given.layers, kernel, dropout=0.1)
        everything: dict[str, torch.nn.Module] = {"torchaudio conformer": Reference(conformer(), theirs, classes), **built}
        if given.others:
            everything |= others(conformer, mels, heads, hidden, given.layers, kernel, classes)
        if given.compile:
            everything |= {f"{name} compiled": compiled(model) for name, model in built.items()}
        steps = {name: stepper(model, *size, given.device) for name, model in everything.items()}
        if given.bf16:
            steps |= {f"{name}, bfloat16": in_bfloat16(step, given.device) for name, step in list(steps.items())}
        first, best = measure(steps, given.rounds)
        busy = {name: operations(model, given.batch, frames, mels) for name, model in built.items()}
        if given.device == "cuda":
            promised = next((count for name, count in PROMISED.items() if name in torch.cuda.get_device_name()), None)
            print(f"{torch.cuda.get_device_name()}: matrix product {ceiling() / 1e12:.0f} TFLOP/s in bfloat16")
        for name, (wall, cpu) in best.items():
            millions = sum(parameter.numel() for parameter in everything[name.partition(",")[0]].parameters()) / 1e6
            ratio = best["torchaudio conformer"][0] / wall
            line = f"{name:32s} {millions:6.2f} M  {wall:7.4f} s wall  {cpu:7.4f} s CPU  {ratio:5.2f} x torchaudio"
            kind = name.split(",")[0].split()[0]
            if given.device == "cuda" and kind in busy:
                line += f"  {busy[kind] / wall / 1e12:5.0f} TFLOP/s"
                line += f", {busy[kind] / wall / promised:.1%}" if promised else ""
            print(f"{line}  first {first[name]:.1f} s")
        return
    for name, arguments in chosen.items():
        steps = {
            "torch": stepper(SpeechModel(getattr(models, name)(mels, *arguments), ctc(classes).head), *size),
            "keras": keras_stepper(given.engine, given.jit, name, arguments, size),
        }
        first, best = measure(steps, given.rounds)
        label = f"{name.lower()} on keras, {given.engine}{' with XLA' if given.jit else ''}"
        times = f"first step {first['keras']:6.1f} s, then {best['keras'][0]:7.3f} s wall {best['keras'][1]:7.3f} s CPU"
        print(f"{label:42s} {times}; torch {best['torch'][0]:7.3f} s; {best['torch'][0] / best['keras'][0]:5.2f} x torch")


if __name__ == "__main__":
    main()
