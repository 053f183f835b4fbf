"""How long a large corpus takes to its first batch, beside Lhotse's own sampler on the same cuts.

    python benchmarks/startup.py DIR [cuts]

DIR holds train.jsonl and its audio; its utterances are repeated under other names until there are so many (280,000). Each way has a
process of its own; seconds and memory are those on top of what importing the libraries takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import soundfile

SECONDS = 200


def written(root: Path, folder: Path, count: int) -> None:
    """The corpus as Lhotse's cuts and as a manifest of NeMo's kind."""
    entries = [json.loads(line) for line in (root / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    headers = [soundfile.info(str(root / entry["audio_filepath"])) for entry in entries]
    (folder / "audio").symlink_to((root / "audio").absolute())
    with (folder / "cuts.jsonl").open("w") as cuts, (folder / "train.jsonl").open("w") as lines:
        for index in range(count):
            entry, header = entries[index % len(entries)], headers[index % len(entries)]
            name, length = f"u{index:06d}", header.frames / header.samplerate
            source = {"type": "file", "channels": [0], "source": str((root / entry["audio_filepath"]).absolute())}
            recording = {
                "id": name,
                "sources": [source],
                "sampling_rate": header.samplerate,
                "num_samples": header.frames,
                "duration": length,
            }
            said = {"id": name, "recording_id": name, "start": 0.0, "duration": length, "text": entry["text"], "speaker": entry["speaker"]}
            cut = {"id": name, "start": 0.0, "duration": length, "channel": 0, "supervisions": [said], "recording": recording}
            cuts.write(json.dumps({**cut, "type": "MonoCut"}) + "\n")
            known = {key: entry[key] for key in ("audio_filepath", "text", "speaker")}
            lines.write(json.dumps({**known, "duration": round(length, 4), "utt_id": name}) + "\n")


def ours(*options: str) -> Callable[[Path], None]:
    """Read the lists, look for what cannot be aligned, divide the epoch, make a batch."""
    import lightning.pytorch  # noqa: F401
    import numpy as np

    from speechtrain import compose
    from speechtrain.config.experiment import ExperimentConfig
    from speechtrain.data.feasibility import without_infeasible
    from speechtrain.data.prepare import prepare
    from speechtrain.tasks.build import task_for

    def run(folder: Path) -> None:
        given = [f"data.root={folder}", "data.split.val=0", f"data.batch_seconds={SECONDS}", "data.num_buckets=30", "augment=specaugment"]
        cfg = ExperimentConfig.of(compose([*given, *options]))
        corpus = prepare(cfg, threads=1)
        task = task_for(cfg, corpus)
        assert task.on_infeasible is not None
        data = without_infeasible(corpus.for_task(task), lambda lengths: -(-lengths // np.int64(4)), task)
        loader = data.loader("train", shuffle=True, augment=True)
        assert loader is not None
        assert len(loader) > 0
        next(iter(loader))

    return run


def lhotse(*, whole: bool) -> Callable[[Path], None]:
    """Cuts from the same file through the bucketing sampler: the first batch's, or all of the epoch's so that their number is known."""
    import lightning.pytorch  # noqa: F401
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler

    def run(folder: Path) -> None:
        cuts = CutSet.from_file(folder / "cuts.jsonl")
        if whole:
            cuts = cuts.to_eager()
        sampler = DynamicBucketingSampler(cuts, max_duration=SECONDS, num_buckets=30, shuffle=True, seed=0, world_size=1, rank=0)
        first, *_ = sampler if whole else [next(iter(sampler))]
        first[0].load_audio()

    return run


WAYS: dict[str, Callable[[], Callable[[Path], None]]] = {
    "speechtrain, data=lhotse": lambda: ours("data=lhotse", "data.train=cuts.jsonl"),
    "speechtrain, data=manifest": lambda: ours("data=manifest", "data.trust_durations=true", "data.sample_rate=16000"),
    "lhotse, shuffled in its buffer, batches not counted": lambda: lhotse(whole=False),
    "lhotse, all batches of the epoch": lambda: lhotse(whole=True),
}


def measure(name: str, folder: Path) -> None:
    """One way, in this process."""
    import resource

    run = WAYS[name]()
    before = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    wall, cpu = time.perf_counter(), time.process_time()
    run(folder)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(f"{name:52s} {cpu:7.1f} {wall:7.1f} {grown / 1e6:8.0f}")


def main() -> None:
    """Every way, one after the other."""
    if sys.argv[1] == "--one":
        measure(sys.argv[2], Path(sys.argv[3]))
        return
    root, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 280_000
    with tempfile.TemporaryDirectory() as name:
        written(root, Path(name), count)
        print(f"{f'{count:,} cuts to the first batch':52s} {'CPU s':>7s} {'wall s':>7s} {'peak MB':>8s}")
        for way in WAYS:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, __file__, "--one", way, name], env=environment, capture_output=True, text=True, check=False
            )
            print(done.stdout.splitlines()[-1] if done.returncode == 0 else f"{way}: {done.stderr.strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
