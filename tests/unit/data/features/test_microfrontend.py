"""The audio front end of TensorFlow Lite Micro in whole numbers, beside the library's own code."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pymicro_features import MicroFrontend as Reference  # the library's C code, for 16 kHz

from speechtrain import compose
from speechtrain.config.build import build
from speechtrain.data.features.augment import Augment
from speechtrain.data.features.microfrontend import STEPS, MicroFrontend, whole_numbers
from speechtrain.errors import ConfigError
from speechtrain.inference.microcontroller import cpp
from speechtrain.inference.microcontroller.windows import features_of, most_samples

_REFERENCE_SCALE = 10 / 256


def signals(rate: int = 16000) -> dict[str, np.ndarray]:
    rng, times = np.random.default_rng(0), np.arange(rate)
    made = {
        "noise": rng.normal(0, 3000, rate),
        "loud noise": rng.uniform(-32768, 32767, rate),
        "hardly anything": rng.normal(0, 2, rate),
        "nothing": np.zeros(rate // 2),
        "a rising tone": 20000 * np.sin(times**1.5 / 300),
        "a square wave": 32767 * np.sign(np.sin(times / 9)),
        "the lowest number": np.full(rate // 2, -32768),
        "less than a window": rng.normal(0, 500, 100),
    }
    return {name: np.clip(np.rint(values), -32768, 32767).astype(np.int64) for name, values in made.items()}


def reference(samples: np.ndarray) -> np.ndarray:
    front_end, data = Reference(), samples.astype(np.int16).tobytes()
    rows = [front_end.process_samples(data[start : start + 320]).features for start in range(0, len(data) - 319, 320)]
    return np.rint(np.array([row for row in rows if row]) / _REFERENCE_SCALE).astype(np.int64)


@pytest.mark.parametrize("name", [name for name in signals() if name != "less than a window"])
def test_its_output_is_that_of_the_library_bit_for_bit(name: str) -> None:
    samples = signals()[name]
    front_end = build("features", compose(["features=microfrontend"]).features)
    np.testing.assert_array_equal(front_end.output(samples), reference(samples))


def test_what_is_kept_and_not_augmented_has_the_whole_numbers_of_the_device() -> None:
    front_end = MicroFrontend(16000, 40, 0.03, 0.01, 125, 7500)
    samples = signals()["noise"]
    spectrum = front_end.spectrum((samples / 32768).astype(np.float32))
    features = front_end.finish(front_end.mel(front_end.unpack(front_end.pack(spectrum))))
    expected = np.clip((256 * reference(samples) + 333) // 666 - 128, -128, 127)
    np.testing.assert_array_equal(features.numpy() * STEPS, expected)
    assert whole_numbers(torch.tensor([0, 666, 65535])).tolist() == [-128, 127, 127]


def test_augmentation_acts_on_its_energies() -> None:
    front_end = MicroFrontend(16000, 40, 0.03, 0.01, 125, 7500)
    spectrum = front_end.spectrum((signals()["a rising tone"] / 32768).astype(np.float32))
    plain = front_end.finish(front_end.mel(spectrum))
    unwarped = front_end.filters()
    torch.testing.assert_close(unwarped, torch.eye(40))
    warped = front_end.finish(front_end.mel(spectrum, warp=1.1))
    peaks = [int(features[60].argmax()) for features in (warped, plain)]
    assert peaks[0] < peaks[1]
    augment = build("augment", compose(["augment=light"]).augment)
    assert isinstance(augment, Augment)
    changed = augment(spectrum, front_end, augment.generator(1, 1, "a"))
    assert changed.shape[1] == 40
    assert (changed * STEPS).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["features.f_max=7900"], "too close to half of sample_rate"),
        (["features.f_min=8000", "features.f_max=7000"], "not below the upper limit"),
        (["features.window=0.0255"], "whole milliseconds"),
    ],
)
def test_what_the_front_end_cannot_do_is_an_error_in_the_config(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(["features=microfrontend", *options])


DRIVER = """
#include <cstdio>
#include "front_end.h"
static float features[kFrames * kBands];
static int16_t samples[kMaxSamples];
int main() {
  const int count = static_cast<int>(std::fread(samples, 2, kMaxSamples, stdin));
  std::fwrite(features, 4, ComputeFeatures(samples, count, features) * kBands, stdout);
}
"""


@pytest.mark.parametrize(
    ("options", "empty"),
    [({"n_mels": 128, "sample_rate": 8000, "f_max": 3750}, 5), ({"n_mels": 1, "f_max": 130}, 1), ({"window": 0.008}, 1)],
)
def test_bands_that_hold_no_frequency_are_an_error_with_their_number(options: dict[str, float], empty: int) -> None:
    keys = {"sample_rate": 16000, "n_mels": 40, "window": 0.03, "hop": 0.008, "f_min": 125, "f_max": 7500, **options}
    with pytest.raises(
        ConfigError, match=rf"features\.n_mels: {keys['n_mels']} bands .* are too narrow .*: {empty} of them hold no frequency"
    ):
        MicroFrontend(**keys)  # type: ignore[arg-type]
    assert MicroFrontend(**{**keys, "n_mels": 1, "f_max": 3000}).filters(1.1).shape == (1, 1)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
@pytest.mark.parametrize(
    "options",
    [
        {"sample_rate": 8000, "n_mels": 40, "window": 0.03, "hop": 0.01, "f_min": 125, "f_max": 3750},
        {"sample_rate": 16000, "n_mels": 32, "window": 0.025, "hop": 0.02, "f_min": 60, "f_max": 7000, "pcan": False},
        {"sample_rate": 8000, "n_mels": 1, "window": 0.03, "hop": 0.01, "f_min": 125, "f_max": 3750},
        {"sample_rate": 8000, "n_mels": 10, "window": 0.064, "hop": 0.032, "f_min": 20, "f_max": 3000},
    ],
    ids=str,
)
def test_the_example_in_c_computes_the_same_with_the_library(tmp_path: Path, options: dict[str, float]) -> None:
    """The library's source is that of the package whose code the other tests run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", str(tmp_path), "pymicro-features==2.0.2"], check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    package = next(tmp_path.glob("pymicro_features-*/"))
    front_end, frames = MicroFrontend(**options), 200  # type: ignore[arg-type]
    constants = {"kSampleRate": front_end.sample_rate, "kFrames": frames, "kBands": front_end.size}
    constants["kMaxSamples"] = most_samples(front_end, frames)
    texts = {**cpp.front_end_files(front_end), "settings.h": cpp.settings_file(constants, ["one"]), "driver.cc": DRIVER}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    library = package / "tensorflow/lite/experimental/microfrontend/lib"
    sources = [path for path in library.glob("*.cc") if not path.stem.endswith(("_io", "_main", "_test", "_generator"))]
    includes = [f"-I{place}" for place in (tmp_path, package, package / "kissfft")]
    words = ["g++", "-std=c++17", "-O1", "-w", "-DFIXED_POINT=16", *includes, str(tmp_path / "driver.cc"), str(tmp_path / "front_end.cc")]
    subprocess.run([*words, *map(str, sources), "-o", str(tmp_path / "driver")], check=True)
    for samples in signals(front_end.sample_rate).values():
        run = subprocess.run([tmp_path / "driver"], input=samples.astype(np.int16).tobytes(), check=True, capture_output=True)
        found = np.frombuffer(run.stdout, dtype=np.float32).reshape(-1, front_end.size)
        others = found != features_of(front_end, (samples / 32768).astype(np.float32))
        assert (
            others.mean() < 0.001
        )  # NumPy's float32 logarithms and cosines, of which the tables are made, differ from C's in the last bit
