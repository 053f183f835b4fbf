"""The input of a pretrained checkpoint, computed as its own feature extractor does: samples, or mel energies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from speechtrain.config.pretrained import Checkpoint
from speechtrain.config.schemas.sound import extractor_problem
from speechtrain.data.audio import Audio
from speechtrain.data.features.features import Stored
from speechtrain.errors import ConfigError, Problem, first_line

_FULL_SCALE = 32768  # of 16-bit samples
_WINDOW, _HOP = 400, 160  # samples of a frame of SeamlessM4TFeatureExtractor, and between two
_ARGUMENTS = ("feature_size", "sampling_rate", "num_mel_bins", "hop_length", "n_fft", "win_length", "preemphasis", "padding_value")
"""What is taken of a description for the extractors of mel energies."""
_LEAST = _WINDOW + _HOP  # samples that mel energies are computed of: of fewer than two frames there is no deviation


class PretrainedFeatures(Stored):
    """Samples (N, 1) for models of waveforms, mel energies (T, M) for others; see `conf/features/pretrained.yaml` for the arguments.

    Raises:
        ConfigError: the checkpoint's files cannot be read, or its features are of another kind.
    """

    from_audio = True

    def __init__(self, sample_rate: int, path: str | None, revision: str | None = None, extractor: Mapping[str, Any] | None = None) -> None:
        settings = dict(extractor) if extractor is not None else Checkpoint.find(path, revision, key="features.path").extractor
        if (problem := extractor_problem(settings)) is not None:  # of a config from anywhere
            raise ConfigError([Problem("features.extractor", *problem)])
        self._kind = str(settings["feature_extractor_type"])
        self._takes_samples = self._kind == "Wav2Vec2FeatureExtractor"
        if (own := int(settings.get("sampling_rate") or sample_rate)) != sample_rate:
            message = f"is {sample_rate} Hz, and the checkpoint takes audio at {own} Hz"
            raise ConfigError([Problem("features.sample_rate", message, f"set features.sample_rate={own}")])
        normalized = bool(settings.get("do_normalize", True))
        super().__init__(sample_rate, "utterance" if normalized else "none")
        self.bins_per_band = torch.ones(1, dtype=torch.float32)
        self._hop = 1 if self._takes_samples else int(settings.get("hop_length") or _HOP)
        self._extractor = None if self._takes_samples else _extractor(self._kind, settings)
        self.size = 1 if self._takes_samples else int(settings.get("num_mel_bins") or settings["feature_size"])
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.identity = f"samples 2, {self.sample_rate} Hz" if self._takes_samples else f"{self._kind} {digest}"

    @property
    def frame_rate(self) -> float:
        """Return the number of frames per second."""
        return self.sample_rate / self._hop

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames T of so many samples."""
        if self._takes_samples:
            return num_samples
        whole_windows = self._kind == "SeamlessM4TFeatureExtractor"
        return 1 + (max(num_samples, _LEAST) - (_WINDOW if whole_windows else 0)) // self._hop

    def spectrum(self, samples: Audio) -> torch.Tensor:
        """Return the samples as frames (N, 1), or compute normalised mel energies (T, M)."""
        if self._extractor is None:
            return torch.from_numpy(samples)[:, None]
        samples = np.pad(samples, (0, max(0, _LEAST - len(samples))))
        rest = {"pad_to_multiple_of": None} if self._kind == "SeamlessM4TFeatureExtractor" else {}
        frames: Any = self._extractor(samples, sampling_rate=self.sample_rate, return_tensors="pt", **rest)["input_features"]
        return torch.as_tensor(frames)[0].float()

    def pack(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Store samples of 16 bits as such; all others, and mel energies, stay as they are."""
        if not self._takes_samples:
            return spectrum
        scaled = spectrum * _FULL_SCALE
        is_exact = bool(((scaled == scaled.round()) & (scaled.abs() < _FULL_SCALE)).all())
        return scaled.short() if is_exact else spectrum

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """Convert 16-bit samples back, into memory of its own."""
        return packed.float().div_(_FULL_SCALE) if packed.dtype == torch.int16 else packed.clone()

    def finish(self, mel: torch.Tensor) -> torch.Tensor:
        """Normalise samples (N, 1) to mean 0 and deviation 1 as `Wav2Vec2FeatureExtractor` does; mel energies are normalised already."""
        if not self._takes_samples or self.normalize == "none" or not len(mel):
            return mel
        return torch.nn.functional.layer_norm(mel, mel.shape, eps=1e-7)


def _extractor(kind: str, settings: Mapping[str, Any]) -> Any:
    """Make a feature extractor of Transformers, which gives single frames instead of joined ones."""
    from transformers import ParakeetFeatureExtractor, SeamlessM4TFeatureExtractor

    arguments = {key: settings[key] for key in _ARGUMENTS if settings.get(key) is not None}
    try:
        if kind == "SeamlessM4TFeatureExtractor":
            return SeamlessM4TFeatureExtractor(**{**arguments, "stride": 1})  # type: ignore[no-untyped-call]
        return ParakeetFeatureExtractor(**arguments)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
        message = f"no {kind} can be made of it ({type(error).__name__}: {first_line(error, most=120)})"
        fix = "give a checkpoint whose preprocessor_config.json is whole"
        raise ConfigError([Problem("features.extractor", message, fix)]) from error
