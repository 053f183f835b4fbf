"""Records a terminal in which a script runs, as an animated SVG of some seconds: `python docs/site/record.py session.sh terminal.svg`.

asciinema records, termtosvg draws (`--group recording` of pyproject.toml); the recording is sped up to SECONDS.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COLUMNS, ROWS, SECONDS = 80, 24, 16
STEP = 200
"""Milliseconds between two frames at least: each costs some kilobytes."""


def faster(cast: str, seconds: float) -> str:
    """Return a recording of asciinema that takes so many seconds."""
    head, *events = cast.splitlines()
    timed = [json.loads(event) for event in events if event]
    scale = seconds / max(seconds, timed[-1][0])
    return "\n".join([head, *(json.dumps([time * scale, kind, text]) for time, kind, text in timed)]) + "\n"


def main(script: Path, picture: Path) -> None:
    """Run the script with bash in the root of the repository, and draw what it shows."""
    with tempfile.TemporaryDirectory() as folder:
        cast = Path(folder) / "terminal.cast"
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        size = ("--cols", str(COLUMNS), "--rows", str(ROWS))
        run = ("asciinema", "rec", "--quiet", *size, "--command", f"bash {script}", str(cast))
        subprocess.run(run, cwd=Path(__file__).resolve().parents[2], env=environment, check=True)
        cast.write_text(faster(cast.read_text(encoding="utf-8"), SECONDS), encoding="utf-8")
        options = ("--min-frame-duration", str(STEP), "--loop-delay", "6000", "--template", "window_frame")
        subprocess.run(("termtosvg", "render", str(cast), str(picture), *options), env=environment, check=True)


if __name__ == "__main__":
    main(*(Path(word).resolve() for word in sys.argv[1:]))
