"""A corpus of spectrograms and tokens on disk, as a program that makes features leaves it: spoken letters, blank last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import TINY

from speechtrain import compose
from speechtrain.config.build import build

PHONEMES = ["AA", "B", "CH", "D"]
FOLDERS = ("split", "spectrogram_manifest", "token_manifest", "vocab", "spectrogram", "token")


def write_corpus(root: Path, *, later_spelling: bool = False, train: int = 40) -> list[str]:
    """Write it; returns the overrides that name its folders."""
    sizes = [f"data.train_size={train}", "data.val_size=8", "data.test_size=8"]
    cfg = compose([*TINY, *sizes, "data.alphabet=abcd", "data.max_chars=5"], output_dir=root)
    corpus = build("data", cfg.data).load(None)
    features = build("features", cfg.features)
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "vocab/phoneme_list.txt").write_text("\n".join(PHONEMES) + "\n")
    samples: dict[str, list[str]] = {}
    for part, cuts in corpus.splits.items():
        samples[part] = [cut.id for cut in cuts]
        for cut in cuts:
            values = features.finish(features.mel(features.spectrum(corpus.read(cut, features.sample_rate)))).numpy().T
            np.save(root / f"spectrogram/{cut.id}_v0.npy", np.pad(values, ((0, 0), (0, 7))).astype(np.float32))
            tokens = [("abcd").index(char) for char in cut.text]
            content = {"phonemes": [PHONEMES[token] for token in tokens], "tokens": tokens + [len(PHONEMES)] * (8 - len(tokens))}
            (root / f"token/{cut.id}.json").write_text(json.dumps(content))
        write_manifest(root / f"split/{part}.json", "audio", [sample(each, None, later_spelling) for each in samples[part]], later_spelling)
    everything = [each for part in samples.values() for each in part]
    variants = [sample(f"{each}_v0", each, later_spelling) for each in everything]
    write_manifest(root / "spectrogram_manifest/manifest.json", "spectrogram", variants, later_spelling)
    write_manifest(
        root / "token_manifest/manifest.json", "tokens", [sample(each, None, later_spelling) for each in everything], later_spelling
    )
    return ["data=featurised", *(f"data.{folder}_dir={root / folder}" for folder in FOLDERS)]


def sample(name: str, parent: str | None, later_spelling: bool) -> dict[str, Any]:
    keys = ("name", "parent_name") if later_spelling else ("id", "parent_id")
    return {keys[0]: name} if parent is None else {keys[0]: name, keys[1]: parent}


def write_manifest(path: Path, kind: str, samples: list[Any], later_spelling: bool = False) -> None:
    version = "schema_version" if later_spelling else "version"
    path.write_text(json.dumps({version: 1, "sample_type": kind, "samples": samples}))
