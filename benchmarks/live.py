"""Word errors of live text beside those of the same model that hears whole utterances, and how long after its end a word is there.

    python benchmarks/live.py RUN MANIFEST [--chunks 2,4,8]

The model was trained with `model.train_chunk_frames`, chunks are some of these. Each recording of the manifest (JSON lines with
`words`, each with `start` and `end` in seconds, as `fsdd_strings` has them), with a second of silence behind it as a microphone goes
on, is given to the live transcriber in packets of 20 ms. A word is there once the text of the signal so far has it for good; only words
that are right are timed. The time of computing is not in it: the last column has it, as a share of the length of the audio.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

import speechtrain
from speechtrain.data.audio import Audio
from speechtrain.inference.recognizer import Recognizer
from speechtrain.inference.streaming import LiveTranscriber

PACKET, AFTER = 0.02, 1.0
"""Seconds of a packet, and of silence behind a recording."""


def silence(recognizer: Recognizer) -> Audio:
    """Return what stands behind a recording."""
    return np.zeros(round(AFTER * recognizer.sample_rate), np.float32)


def live_words(recognizer: Recognizer, heard: Audio) -> tuple[str, list[float]]:
    """Return the text of a live signal, and when (s of signal received) each of its words was there for good."""
    transcriber = LiveTranscriber(recognizer)
    step = round(PACKET * recognizer.sample_rate)
    finals: list[str] = []
    told: list[tuple[float, list[str]]] = []  # all words so far, and when
    for begin in range(0, len(heard), step):
        finals += [each.text for each in transcriber.push(heard[begin : begin + step])]
        if transcriber.changed or not told:
            partial = transcriber.partial()
            told.append(((begin + step) / recognizer.sample_rate, " ".join([*finals, partial.text if partial else ""]).split()))
    finals += [each.text for each in transcriber.finish()]
    words = transcriber.text.split()
    told.append((len(heard) / recognizer.sample_rate, words))
    times = []
    for index in range(1, len(words) + 1):
        since = len(told) - 1
        while since and told[since - 1][1][:index] == words[:index]:
            since -= 1
        times.append(told[since][0])
    return " ".join(words), times


def right_words(reference: Sequence[Mapping[str, Any]], words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the places of equal words in the reference and in a text."""
    if not words:
        return
    aligned = jiwer.process_words(" ".join(each["word"] for each in reference), " ".join(words))
    for chunk in aligned.alignments[0]:
        if chunk.type == "equal":
            yield from zip(range(chunk.ref_start_idx, chunk.ref_end_idx), range(chunk.hyp_start_idx, chunk.hyp_end_idx), strict=True)


def measure(name: str, manifest: Path, chunks: str) -> None:
    """Print a line for one length of the chunks; `null` is the model with whole utterances."""
    recognizer = speechtrain.load(name, f"model.chunk_frames={chunks}", "backend.threads=1")
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    texts, late, differ = [], [], 0
    seconds = spent = 0.0
    for row in rows:
        samples = np.concatenate([recognizer.read(manifest.parent / row["audio_filepath"]), silence(recognizer)])
        seconds += len(samples) / recognizer.sample_rate
        started = time.process_time()
        text, times = (
            (recognizer.transcribe(samples, recognizer.sample_rate).text, []) if chunks == "null" else live_words(recognizer, samples)
        )
        spent += time.process_time() - started
        texts.append(text)
        if chunks == "null":
            continue
        differ += text != recognizer.transcribe(samples, recognizer.sample_rate).text
        late += [times[there] - row["words"][said]["end"] for said, there in right_words(row["words"], text.split())]
    wer = 100 * jiwer.wer([row["text"] for row in rows], texts)
    told = "" if not late else "  after the end of a word {:5.2f} s (median) {:5.2f} s (95 %)".format(*np.quantile(late, [0.5, 0.95]))
    unlike = "" if chunks == "null" else f"  {differ} texts unlike those of the whole file"
    print(f"chunks {chunks:>4}  WER {wer:5.2f} %{told}  CPU {spent / seconds:.3f}{unlike}", flush=True)


def main() -> None:
    """Measure whole utterances, then each length of the chunks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--chunks", default="2,4,8")
    given = parser.parse_args()
    for chunks in ("null", *given.chunks.split(",")):
        measure(given.model, given.manifest, chunks)


if __name__ == "__main__":
    main()
