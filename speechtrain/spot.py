"""`python -m speechtrain.spot`: find keywords in audio that goes on, and measure false alarms and misses at several thresholds.

    python -m speechtrain.spot from=last background=talk/
    python -m speechtrain.spot from=3f2a91 background=[talk/,music.flac] window=1 step=0.1 smooth=3 'thresholds=[0.8,0.9,0.95]'

A window of audio is classified at each step, as a microcontroller does it; probabilities are averaged over some windows, and a keyword is
reported where the average reaches the threshold. What is found in `background`, which holds no keywords, are false alarms; the keywords are
the utterances of a split, each in silence. Keys are those of conf/spot.yaml, and `data` and `backend` as in training.
"""

from __future__ import annotations

import logging

from rich.table import Table

from speechtrain.app.arguments import arguments_of
from speechtrain.app.command import run_command
from speechtrain.config.overlay import overlaid
from speechtrain.config.schemas.commands import SpotConfig
from speechtrain.console import console
from speechtrain.inference.find import results_folder, stored_for
from speechtrain.inference.recognizer import Recognizer
from speechtrain.inference.recordings import find_recordings
from speechtrain.inference.spotting import Spotter, read_background, read_keywords, write_curve


def run(arguments: list[str]) -> int:
    """Measure with the keys of conf/spot.yaml, print the curve, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg, overrides = arguments_of(SpotConfig, arguments)
    files = [file for file in find_recordings(cfg.background) if file is not None]
    weights, stored, vocabulary = stored_for(cfg)
    recognizer = Recognizer.of(weights, overlaid(stored, overrides), vocabulary)
    spotter = Spotter(recognizer, cfg)
    words = read_keywords(recognizer, cfg.split, cfg.ignore)
    points, hours = spotter.curve(read_background(recognizer, files), words)
    console.print(f"model       {weights}\nbackground  {hours:.2f} h\nkeywords    {len(words)} recordings of {cfg.split}\n", markup=False)
    table = Table(box=None, pad_edge=False)
    for title in ("threshold", "false alarms / h", "missed", "wrong"):
        table.add_column(title, justify="right")
    for point in points:
        table.add_row(f"{point.threshold:g}", f"{point.false_alarms_per_hour:.1f}", f"{point.missed:.2%}", f"{point.wrong:.2%}")
    console.print(table)
    path = write_curve(points, hours, results_folder(weights, "spotting", cfg.out))
    console.print(f"\ncurve       {path}", markup=False)
    return 0


if __name__ == "__main__":
    run_command(__doc__, run)
