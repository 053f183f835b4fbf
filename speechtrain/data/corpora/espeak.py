"""A worker process that synthesizes speech with eSpeak NG: `python -m speechtrain.data.corpora.espeak`.

It reads a JSON job a line from the standard input and prints a line for each finished file.

eSpeak NG is GPL-3 and not thread-safe, so it runs in processes of its own. Its output depends on what the process spoke before;
the library is therefore loaded anew for every utterance. Breath is noise, from a generator that `espeak_Initialize` seeds with
the process number and from C's own; both are seeded after that. The audio is then a function of the job alone.
"""

from __future__ import annotations

import _ctypes
import ctypes
import json
import math
import sys
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
import numpy.typing as npt
import soundfile
from scipy.signal import resample_poly

from speechtrain.files import atomically

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS in speak_lib.h
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER in speak_lib.h
_UTF8 = 1  # espeakCHARS_UTF8
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> tuple[npt.NDArray[np.int16], int]:
    """Synthesize a text as samples (N,), and return them with their rate in Hz.

    Args:
        text: the text to be spoken.
        voice: an eSpeak language with a variant, for example `en-us+f2`.
        rate: words a minute.
        pitch: 0 to 100.
        pitch_range: 0 to 100.

    Raises:
        ValueError: there is no such language or variant (eSpeak itself would silently speak with its default voice).
    """
    variant = voice.partition("+")[2]
    if not (Path(espeakng_loader.get_data_path()) / "voices" / "!v" / variant).is_file():
        raise ValueError(f"eSpeak NG has no voice variant '{variant}'")
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks: list[npt.NDArray[np.int16]] = []

    @_CALLBACK  # type: ignore[untyped-decorator]
    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    try:
        sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)
        library.espeak_SetSynthCallback(collect)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice '{voice}'")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        library.espeak_Synchronize()
    finally:
        library.espeak_Terminate()
        handle = library._handle
        del library
        _ctypes.dlclose(handle)
    return np.concatenate(chunks), int(sample_rate)


def make(job: dict[str, Any]) -> None:
    """Synthesize one job into its file, which appears whole or not at all."""
    samples, rate = speak(job["text"], job["voice"], job["rate"], job["pitch"], job["pitch_range"])
    divisor = math.gcd(rate, job["sample_rate"])
    resampled = resample_poly(samples.astype(np.float64), job["sample_rate"] // divisor, rate // divisor)
    path = Path(job["path"])
    with atomically(path) as temporary:
        soundfile.write(
            temporary, np.clip(np.rint(resampled), -32768, 32767).astype(np.int16), job["sample_rate"], format="FLAC", subtype="PCM_16"
        )


def main() -> None:
    """Do the jobs of the standard input until its end."""
    for line in sys.stdin:
        make(json.loads(line))
        print("done", flush=True)


if __name__ == "__main__":
    main()
