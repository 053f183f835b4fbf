"""How fast batches are made, beside Lhotse's own data set and torchaudio's MelSpectrogram in a plain DataLoader.

    python benchmarks/data.py DIR [repetitions] [rows]

DIR holds train.jsonl and its audio (LibriSpeech in FLAC), `rows` is a regular expression that the names of rows match which are measured
beside torchaudio's. One thread, and for `data=shar` those that fetch, with a server in a process of its own; seconds of audio a second of
CPU time and of wall time, the median of interleaved repetitions, and the ratio to torchaudio's of the same repetition.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import contextlib
import json
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import shar
import soundfile
import torch
import torchaudio
from lhotse import CutSet, Fbank, FbankConfig, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.dataset import DynamicBucketingSampler, K2SpeechRecognitionDataset, SpecAugment
from lhotse.dataset.input_strategies import OnTheFlyFeatures
from torch.utils.data import DataLoader, Dataset

from speechtrain import compose
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.data.corpus import Cut
from speechtrain.data.prepare import prepare
from speechtrain.data.task_data import TaskData
from speechtrain.tasks.build import task_for

BATCH_SECONDS = 200


def ours(root: Path, *more: str) -> TaskData:
    """Our data room on the manifest, read once."""
    return prepared("data=manifest", f"data.root={root}", "data.train=train.jsonl", *more)


def from_shards(root: Path | str, *more: str) -> TaskData:
    """Our data room on tar files, which are read anew in each epoch."""
    return prepared("data=shar", f"data.root={root}", *more)


def prepared(*more: str) -> TaskData:
    """Our data room."""
    options = [f"data.batch_seconds={BATCH_SECONDS}", "data.num_buckets=30"]
    cfg = ExperimentConfig.of(compose([*options, "backend.threads=1", "data.on_shared.speaker=allow", *more]))
    corpus = prepare(cfg, threads=1)
    return corpus.for_task(task_for(cfg, corpus))


def epochs(data: TaskData, *, augment: bool) -> Callable[[], Iterable[object]]:
    """Batches of the next epoch at each call."""
    loader = data.loader("train", shuffle=True, augment=augment)
    assert loader is not None
    count = iter(range(1_000_000))

    def run() -> Iterable[object]:
        loader.set_epoch(next(count))
        return loader

    return run


class Plain(Dataset[tuple[torch.Tensor, str]]):
    """What a script would do: read, log-mel, masks."""

    def __init__(self, root: Path) -> None:
        self.entries = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
        self.root = root
        self.mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=512, win_length=400, hop_length=160, n_mels=80)
        self.masks = [torchaudio.transforms.FrequencyMasking(27), torchaudio.transforms.TimeMasking(70, p=0.1)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        samples, _ = soundfile.read(self.root / self.entries[index]["audio_filepath"], dtype="float32")
        features = self.mel(torch.from_numpy(samples)).clamp_min(1e-10).log()
        for mask, times in zip(self.masks, (2, 5), strict=True):
            for _ in range(times):
                features = mask(features)
        return features.T, self.entries[index]["text"]


def padded(items: list[tuple[torch.Tensor, str]]) -> tuple[torch.Tensor, list[str]]:
    """As one batch."""
    return torch.nn.utils.rnn.pad_sequence([features for features, _ in items], batch_first=True), [text for _, text in items]


def said(cut: Cut) -> MonoCut:
    """Lhotse's cut with the text, which its data set asks for."""
    recording = Recording(cut.id, [AudioSource("file", [0], cut.path)], cut.sample_rate, cut.num_samples, cut.duration)
    segment = SupervisionSegment(cut.id, cut.id, 0.0, cut.duration, text=cut.text)
    return MonoCut(cut.id, 0.0, cut.duration, 0, supervisions=[segment], recording=recording)


def lhotse_batches(root: Path) -> Callable[[], Iterable[object]]:
    """Lhotse's data set with features on the fly and its SpecAugment."""
    from speechtrain.data.corpora.manifest import Manifest

    split = {"by": "utterance", "val": 0, "test": 0, "seed": 0}
    cuts = CutSet.from_cuts(said(cut) for cut in Manifest(str(root), "train.jsonl", None, None, split).load(None).splits["train"])
    data = K2SpeechRecognitionDataset(
        input_strategy=OnTheFlyFeatures(Fbank(FbankConfig(num_mel_bins=80))),
        input_transforms=[SpecAugment(time_warp_factor=0, num_frame_masks=5, num_feature_masks=2, p=1.0)],
    )

    def run() -> Iterable[object]:
        sampler = DynamicBucketingSampler(cuts, max_duration=BATCH_SECONDS, num_buckets=10, shuffle=True, world_size=1, rank=0)
        return DataLoader(data, sampler=sampler, batch_size=None)

    return run


def measured(batches: Iterable[object]) -> tuple[float, float]:
    """CPU and wall seconds of a pass."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in batches:
        pass
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Measure and print a table."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    rows = sys.argv[3] if len(sys.argv) > 3 else ""
    audio = sum(json.loads(line)["duration"] for line in (root / "train.jsonl").read_text().splitlines())
    plain = DataLoader(Plain(root), batch_size=16, shuffle=True, collate_fn=padded)
    masks = ["augment=specaugment", "augment.speed=0"]
    uncached = ["data.cache_gb=0", "data.feature_cache=null"]
    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        shards = Path(folder) / "shards"
        shar.make_shards(root, shards, 100)
        near, far = (opened.enter_context(shar.serving(shards, latency)) for latency in (0.0, 0.05))
        stored = ["data.cache_gb=0", f"data.feature_cache={folder}"]
        ways: dict[str, Callable[[], Iterable[object]]] = {
            "torchaudio, DataLoader: FLAC, log-mel, SpecAugment": lambda: plain,
            "lhotse: FLAC, Fbank, SpecAugment": lhotse_batches(root),
            "speechtrain: FLAC, log-mel, SpecAugment": epochs(ours(root, *masks, *uncached), augment=True),
            "speechtrain: the same from tar files on disk": epochs(from_shards(shards, *masks), augment=True),
            "speechtrain: the same from tar files by HTTP": epochs(from_shards(near, *masks), augment=True),
            "speechtrain: the same, 50 ms before each answer": epochs(from_shards(far, *masks), augment=True),
            "speechtrain: FLAC and speed perturbation": epochs(ours(root, "augment=specaugment", *uncached), augment=True),
            "speechtrain: the last from the cache on disk": epochs(ours(root, "augment=specaugment", *stored), augment=True),
            "speechtrain: features kept, no augmentation": epochs(ours(root, "augment=none"), augment=True),
        }
        ways = {name: each for name, each in ways.items() if name.startswith("torchaudio") or re.search(rows, name)}
        for batches in ways.values():
            measured(batches())
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(repetitions):
            for name, batches in ways.items():
                found[name].append(measured(batches()))
        data = ours(root, "augment=none")
        loader = data.loader("train", shuffle=True)
        assert loader is not None
        frames = [(batch.feature_lengths.sum(), batch.features.shape[0] * batch.features.shape[1]) for batch in loader]
    base = found["torchaudio, DataLoader: FLAC, log-mel, SpecAugment"]
    print(f"{'seconds of audio a second':52s} {'CPU':>9s} {'wall':>9s} {'ratio':>7s}")
    for name, times in found.items():
        cpu, wall = (audio / statistics.median(each[kind] for each in times) for kind in (0, 1))
        ratio = statistics.median(first[0] / second[0] for first, second in zip(base, times, strict=True))
        print(f"{name:52s} {cpu:9,.0f} {wall:9,.0f} {ratio:7.2f}")
    real, all_frames = (sum(each) for each in zip(*frames, strict=True))
    print(f"padding of {BATCH_SECONDS}-second batches: {100 * (all_frames / real - 1):.1f} %")


if __name__ == "__main__":
    main()
