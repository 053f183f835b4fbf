"""Published corpora in miniature, in the shape in which they lie on disk; utterances are tones that spell their words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

SENTENCES = ("HE HOPED THERE WOULD BE STEW", "STUFF IT INTO YOU", "AFTER EARLY NIGHTFALL", "HELLO BERTIE")


def tones(text: str, rate: int = 16000) -> np.ndarray:
    """A tone of 60 ms a character."""
    time = np.arange(round(0.06 * rate)) / rate
    return np.concatenate([0.3 * np.sin(2 * np.pi * (200 + 50 * (ord(char) % 40)) * time) for char in text]).astype(np.float32)


def write(path: Path, text: str, rate: int = 16000, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tones(text, rate), rate, **options)
    return path


def tone(path: Path, seconds: float = 0.3, rate: int = 8000) -> Path:
    """A file of one tone, whose pitch depends on the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = sum(map(ord, path.name))
    samples = 0.1 * np.sin(2 * np.pi * (200 + number) * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, samples.astype(np.float32), rate)
    return path


def librispeech(root: Path, parts: tuple[str, ...] = ("train-clean-5", "dev-clean-2")) -> Path:
    """PART/speaker/chapter/{speaker-chapter-0000.flac, speaker-chapter.trans.txt} under LibriSpeech."""
    for number, part in enumerate(parts):
        for speaker in (100 + 10 * number, 101 + 10 * number):
            chapter = root / "LibriSpeech" / part / str(speaker) / "7"
            lines = []
            for index, text in enumerate(SENTENCES):
                name = f"{speaker}-7-{index:04d}"
                write(chapter / f"{name}.flac", text)
                lines.append(f"{name} {text}\n")
            (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    return root


def yesno(root: Path) -> Path:
    """waves_yesno/0_0_1_0_1_1_0_1.wav, 8 kHz."""
    for number in range(12):
        name = "_".join(f"{number:08b}")
        write(root / "waves_yesno" / f"{name}.wav", "".join("Y" if digit == "1" else "N" for digit in name[::2]), 8000)
    return root


def ljspeech(root: Path) -> Path:
    """LJSpeech-1.1/{metadata.csv, wavs/LJ001-0001.wav}, 22,050 Hz."""
    lines = []
    for index, text in enumerate(SENTENCES * 3):
        name = f"LJ001-{index:04d}"
        write(root / "LJSpeech-1.1" / "wavs" / f"{name}.wav", text, 22050)
        lines.append(f'{name}|In {1800 + index} "{text}"|In eighteen hundred "{text}"\n')
    (root / "LJSpeech-1.1" / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return root


def common_voice(root: Path, language: str = "cy") -> Path:
    """LANGUAGE/{train.tsv, dev.tsv, test.tsv, clips/*.mp3}."""
    head = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\n"
    for number, part in enumerate(("train", "dev", "test")):
        lines = [head]
        for index, text in enumerate(("Mae'r tŷ'n fawr.", "“Bore da!” meddai", "Dŵr a thân")):
            name = f"common_voice_{language}_{number}{index}.mp3"
            write(root / language / "clips" / name, text, 32000, format="MP3")
            lines.append(f"{'ab' * 4}{number}{index}\t{name}\t{text}\t2\t0\ttwenties\tfemale\t\t{language}\n")
        (root / language / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")
    return root


def timit(root: Path) -> Path:
    """TRAIN/DR1/FCJF0/SX127.{WAV,TXT,PHN,WRD}; the speakers of TEST are of the development and the core test set."""
    phones = [("h#", 0, 960), ("sh", 960, 1920), ("ix", 1920, 2880), ("hv", 2880, 3840), ("q", 3840, 4800), ("h#", 4800, 5760)]
    for part, region, speaker in (("TRAIN", "DR1", "FCJF0"), ("TEST", "DR4", "FDMS0"), ("TEST", "DR1", "MDAB0")):
        for name in ("SA1", "SX127", "SI648"):
            base = root / part / region / speaker / name
            write(base.with_suffix(".WAV"), "SHE HAD", format="NIST")
            base.with_suffix(".TXT").write_text("0 5760 She had your dark suit.\n")
            base.with_suffix(".PHN").write_text("".join(f"{start} {end} {phone}\n" for phone, start, end in phones))
    return root


def an4(root: Path) -> Path:
    """an4/{etc/an4_train.fileids, etc/an4_train.transcription, wav/an4_clstk/fash/an251-fash-b.sph}."""
    (root / "an4" / "etc").mkdir(parents=True)
    for part, folder, speakers in (("train", "an4_clstk", ("fash", "fbbh", "mblw")), ("test", "an4test_clstk", ("mjgm",))):
        ids, lines = [], []
        for speaker in speakers:
            for index, text in enumerate(("YES", "GO", "P I T T S")):
                name = f"an{index}-{speaker}-b"
                write(root / "an4" / "wav" / folder / speaker / f"{name}.sph", text, format="NIST")
                ids.append(f"{folder}/{speaker}/{name}\n")
                lines.append(f"<s> {text} </s> ({name})\n" if part == "train" else f"{text} ({name})\n")
        (root / "an4" / "etc" / f"an4_{part}.fileids").write_text("".join(ids))
        (root / "an4" / "etc" / f"an4_{part}.transcription").write_text("".join(lines))
    return root


def speech_commands(root: Path, words: tuple[str, ...] = ("yes", "no", "tree")) -> Path:
    """WORD/SPEAKER_nohash_0.wav, {validation_list.txt, testing_list.txt}, _background_noise_/hum.wav."""
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word in words:
        for speaker in range(8):
            name = f"{word}/{speaker:08x}_nohash_0.wav"
            tone(root / name, rate=16000)
            if speaker >= 6:
                lists["testing_list.txt" if speaker == 7 else "validation_list.txt"].append(name)
    tone(root / "_background_noise_" / "hum.wav", seconds=20, rate=16000)
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def kaldi(root: Path, part: str = "train", speakers: tuple[str, ...] = ("ann", "bob", "cyd")) -> Path:
    """PART/{wav.scp, text, utt2spk, segments}: two utterances a recording."""
    folder = root / part
    folder.mkdir(parents=True)
    files: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": [], "segments": []}
    for speaker in speakers:
        first, second = SENTENCES[1], SENTENCES[3]
        write(root / "audio" / f"{speaker}.wav", first + second)
        files["wav.scp"].append(f"{speaker} audio/{speaker}.wav")
        middle = 0.06 * len(first)
        for index, (text, start, end) in enumerate(((first, 0.0, middle), (second, middle, middle + 0.06 * len(second) + 0.004))):
            name = f"{speaker}-{index}"
            files["text"].append(f"{name} {text}")
            files["utt2spk"].append(f"{name} {speaker}")
            files["segments"].append(f"{name} {speaker} {start:.3f} {end:.3f}")
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return root
