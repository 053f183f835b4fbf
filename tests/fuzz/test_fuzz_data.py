"""Speech data, audio, language models, texts and numbers of configs, each mutated: used rightly, or refused with a message."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
from featurised import write_corpus
from fuzzing import answer, files_below, generators, peak_megabytes
from omegaconf import OmegaConf

from speechtrain.config.compose import compose, compose_command
from speechtrain.config.node_checks import find_node_problems
from speechtrain.config.schema import SCHEMAS
from speechtrain.config.schemas.commands import COMMANDS
from speechtrain.data.audio import RecordingReader, read_recording
from speechtrain.data.corpora.folder import Folder
from speechtrain.data.corpora.kaldi import Kaldi
from speechtrain.data.corpora.lhotse import LhotseCuts
from speechtrain.data.corpora.manifest import Manifest
from speechtrain.data.corpora.published import CommonVoice, LJSpeech
from speechtrain.data.corpora.signals import Hdf5Signals
from speechtrain.data.corpora.spectrograms import Featurised
from speechtrain.data.corpus import Corpus, CorpusSource, read_header, report_skips
from speechtrain.data.text.normalize import STEPS, normalizer
from speechtrain.data.text.tokenizers import CharTokenizer
from speechtrain.decode.beam import read_lexicon
from speechtrain.decode.ngram import NGram

NO_SPLIT: dict[str, Any] = {"by": "utterance", "val": 0, "test": 0, "seed": 0}
NUMBERS: list[Any] = [0, -1, 1, 0.3, 1e-320, 1e14, 2**31, 2**63, 10**400, 1e308, math.inf, -math.inf, math.nan, True, None]
TEXTS = [
    *(
        "",
        " ",
        "\0",
        "a\tb",
        "a\nb",
        "\u2028",
        "\u202e",
        "\x1b[31m",
        "\ud800",
        "\udcff",
        "x" * 300,
        "x" * 70_000,
        "../x",
        "/etc/passwd",
        ".",
    ),
    *(
        "..",
        "~nobody/x",
        "touch evil |",
        "[[[[",
        "{}",
        "\U0001f600",
        "\r",
        "nan",
        "1e400",
        "٣",
        "24.12.2025",
        "9" * 400,
        "5000000000",
        "\\9",
    ),
]


def value(rng: random.Random, depth: int = 0) -> Any:
    """A value of JSON that none of ours would write."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 6 or depth > 2:
        return rng.choice(TEXTS)
    return [value(rng, depth + 1)] if kind == 6 else {rng.choice(TEXTS): value(rng, depth + 1)}


def changed(content: Any, rng: random.Random) -> Any:
    """A copy of a value of JSON with one thing in it replaced, removed or added, at any depth."""
    if isinstance(content, dict) and content:
        key = rng.choice(list(content))
        if rng.random() < 0.15:
            return {name: each for name, each in content.items() if name != key}
        return {**content, (rng.choice(TEXTS) if rng.random() < 0.1 else key): changed(content[key], rng)}
    if isinstance(content, list) and content and rng.random() < 0.8:
        place = rng.randrange(len(content))
        return [*content[:place], changed(content[place], rng), *content[place + 1 :]]
    return value(rng)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes of which some are flipped, cut, repeated or put in."""
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(max(1, len(out)))
        match rng.randrange(5):
            case 0 if out:
                out[place % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                del out[place:]
            case 2:
                out[place:place] = rng.choice(
                    [b"\xff\xfe", b"\0" * 8, b"\n", b"\xe9", b"[" * 5000, "\u2028".encode(), b"\x85", b"1e400", b"\t"]
                )
            case 3:
                out[place : place + 8] = out[place : place + 8] * 2
            case _:
                out[place : place + 4] = rng.randbytes(4)
    return bytes(out)


def wav(path: Path, seconds: float = 0.2, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(round(seconds * rate))), rate)
    return path


def used(source: Callable[[], CorpusSource], received: object) -> Corpus | None:
    """Load a corpus, check all that it gives, and read its recordings; None: it is refused."""
    corpus = answer(lambda: source().load(None), received)
    if not isinstance(corpus, Corpus):
        return None
    for cut in (cut for cuts in corpus.splits.values() for cut in cuts):
        for name in (cut.id, cut.speaker or ""):
            assert isinstance(name, str), (name, received)
            assert not set(name) & set("\0\n\r\t\u2028"), (name, received)
            name.encode()
        cut.text.encode()
        assert 0 < cut.duration < 1e9, (cut.duration, received)
        assert 0 < cut.sample_rate <= 1_000_000, (cut.sample_rate, received)
        samples = answer(lambda cut=cut: corpus.read(cut, 8000), received)  # type: ignore[misc]
        assert isinstance(samples, str) or np.isfinite(samples).all(), received
    for on_bad in ("skip", "error"):
        told = answer(lambda on_bad=on_bad: report_skips(corpus.skipped, on_bad), received)  # type: ignore[misc]
        assert told is None or "data.on_bad=error" in told, told
    return corpus


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        wav(tmp_path / "data" / "audio" / f"{name}.wav")
    os.mkfifo(tmp_path / "data" / "audio" / "pipe.wav")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _memory() -> Any:
    """No input of a test takes a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


LINE = {"audio_filepath": "audio/b.wav", "duration": 0.2, "text": "two", "utt_id": "b", "speaker": "s", "words": [["two", 0.0, 0.1]]}


def test_manifests(root: Path) -> None:
    good = [json.dumps({**LINE, "audio_filepath": f"audio/{name}.wav", "utt_id": name}) for name in "ac"]
    for _, rng in generators("manifest", 150):
        entry = changed(LINE, rng)
        if rng.random() < 0.1:
            entry = {**LINE, "audio_filepath": rng.choice(["audio/pipe.wav", "audio", "audio/" + "x" * 255])}
        bad = json.dumps(entry, ensure_ascii=True).encode()
        by_bytes = rng.random() < 0.3
        content = damaged(bad, rng) if by_bytes else bad
        (root / "train.jsonl").write_bytes(good[0].encode() + b"\n" + content + b"\n" + good[1].encode() + b"\n")
        trusted = rng.random() < 0.3
        corpus = used(
            lambda trusted=trusted: Manifest(  # type: ignore[misc]
                str(root), "train.jsonl", None, None, NO_SPLIT, sample_rate=8000 if trusted else None, trust_durations=trusted
            ),
            content,
        )
        if corpus is not None:
            assert {"a", "c"} <= {cut.id for cut in corpus.splits["train"]}
        else:
            assert by_bytes, content  # only what is not UTF-8 refuses the whole


def test_kaldi_folders(root: Path) -> None:
    files = {
        "wav.scp": "a audio/a.wav\nb audio/b.wav\nc audio/c.wav\n",
        "text": "u one\nv two\nw three\n",
        "utt2spk": "u s\nv s\nw t\n",
        "segments": "u a 0 0.1\nv b 0.05 -1\nw c 0 0.2\n",
    }
    (root / "train").mkdir()
    for _, rng in generators("kaldi", 100):
        for name, content in files.items():
            (root / "train" / name).unlink(missing_ok=True)
            (root / "train" / name).write_text(content)
        name = rng.choice(list(files))
        if rng.random() < 0.1:
            (root / "train" / name).unlink()
            os.mkfifo(root / "train" / name)
            content = b"a pipe"
        else:
            lines = [line.split(" ") for line in files[name].splitlines()]
            line = rng.choice(lines)
            line[rng.randrange(len(line))] = str(value(rng)).encode(errors="surrogatepass").decode(errors="surrogateescape")
            content = "\n".join(" ".join(line) for line in lines).encode(errors="surrogateescape")
            content = damaged(content, rng) if rng.random() < 0.4 else content
            (root / "train" / name).write_bytes(content)
        used(lambda: Kaldi(str(root), "train", None, None, NO_SPLIT), (name, content))
        assert not Path("evil").exists()


def test_lhotses_lines(root: Path) -> None:
    recording = {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "audio/b.wav"}],
        "sampling_rate": 8000,
        "num_samples": 1600,
    }
    recording |= {"duration": 0.2, "channel_ids": [0]}
    supervision = {"id": "s", "recording_id": "r", "start": 0.0, "duration": 0.2, "channel": 0, "text": "two", "speaker": "x"}
    line = {
        "id": "b",
        "start": 0.0,
        "duration": 0.2,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
    }
    good = json.dumps({**line, "id": "a"})
    evil = {
        "id": "e",
        "sources": [{"type": "command", "channels": [0], "source": "touch evil"}],
        "sampling_rate": 8000,
        "num_samples": 9,
        "duration": 1,
    }
    for _, rng in generators("lhotse", 100):
        entry = line
        if rng.random() < 0.3:
            transforms = [
                {"name": "Resample", "kwargs": {"source_sampling_rate": rng.choice(NUMBERS), "target_sampling_rate": 7999}},
                {"name": "Speed", "kwargs": {"factor": rng.choice([*NUMBERS, 0.97331])}},
                {"name": "ReverbWithImpulseResponse", "kwargs": {"rir": evil}},
                {"name": "Volume", "kwargs": {"factor": rng.choice(NUMBERS)}},
            ]
            entry = {**line, "recording": {**recording, "transforms": [rng.choice(transforms)]}}
        content = json.dumps(changed(entry, rng)).encode()
        by_bytes = rng.random() < 0.2
        content = damaged(content, rng) if by_bytes else content
        data = f"{good}\n".encode() + content
        packed = rng.random() < 0.3
        name = "cuts.jsonl.gz" if packed else "cuts.jsonl"
        data = gzip.compress(data) if packed else data
        damaged_pack = packed and rng.random() < 0.3
        (root / name).write_bytes(damaged(data, rng) if damaged_pack else data)
        corpus = used(lambda name=name: LhotseCuts(str(root), name, None, None, NO_SPLIT), content)  # type: ignore[misc]
        assert damaged_pack or by_bytes or (corpus is not None and corpus.splits["train"][0].id == "a"), content
        assert not Path("evil").exists()


def test_folders_and_published_lists(root: Path) -> None:
    names = [
        b"x" * 250,
        b"caf\xe9",
        b"a\tb",
        b"a\nb",
        "\u2028".encode(),
        "é".encode(),
        b" ",
        b"-",
        b"a b",
        b"\xf0\x9f\x98\x80",
        b"$(touch evil)",
    ]
    for number, rng in generators("folder", 60):
        place = root / f"folder{number}" / "word"
        wav(place / "good.wav")
        stem = rng.choice(names)
        odd = os.fsencode(place) + b"/" + stem + b".wav"
        Path(os.fsdecode(odd)).write_bytes((place / "good.wav").read_bytes())
        (place / "good.txt").write_bytes(b"good")
        Path(os.fsdecode(odd[:-4] + b".txt")).write_bytes(damaged(rng.choice(TEXTS).encode(errors="replace") or b"a", rng))
        labels = rng.choice(["folder", "file"])
        corpus = used(lambda: Folder(str(place.parent), labels, ".", None, None, NO_SPLIT, "folder"), (stem, labels))  # noqa: B023
        assert corpus is not None
        assert "word/good" in [cut.id for cut in corpus.splits["train"]]
    wav(root / "lj" / "wavs" / "a.wav")
    wav(root / "cv" / "en" / "clips" / "a.mp3.wav").rename(root / "cv" / "en" / "clips" / "a.mp3")
    for _, rng in generators("published", 60):
        content = damaged(f"a|one|one\nb|{rng.choice(TEXTS)}|x\n".encode(errors="surrogatepass"), rng)
        (root / "lj" / "metadata.csv").write_bytes(content)
        used(lambda: LJSpeech(str(root / "lj"), NO_SPLIT), content)
        content = damaged(
            f"path\tsentence\tage\na.mp3\tone\t1\n{rng.choice(TEXTS)}\t{rng.choice(TEXTS)}\n".encode(errors="surrogatepass"), rng
        )
        (root / "cv" / "en" / "train.tsv").write_bytes(content)
        used(lambda: CommonVoice(str(root / "cv"), "en", ["train"], [], []), content)


def test_hdf5_files(root: Path) -> None:
    for number, rng in generators("hdf5", 80):
        path = root / f"{number}.h5"
        arrays = {"mixed_signals": (4, 20), "target_signals": (4, 20), "condition_vectors": (4, 3)}
        with h5py.File(path, "w") as file:
            for name, shape in arrays.items():
                file[name] = np.zeros(shape, rng.choice([np.float32, np.float64, np.int16]))
            file.attrs["sample_rate"] = 100
            name = rng.choice(list(arrays))
            kind = rng.randrange(8)
            if kind < 6:
                del file[name]
            if kind == 0:
                file.create_dataset(
                    name, (rng.choice([0, 4, 2**40]), rng.choice([0, 20, 2**40])), np.float32, chunks=(1, 4), maxshape=(None, None)
                )
            elif kind == 1:
                file[name] = h5py.ExternalLink(rng.choice(["/etc/passwd", str(path), "none.h5"]), name)
            elif kind == 2:
                file[name] = h5py.SoftLink(rng.choice([f"/{name}", "/none", "/"]))
            elif kind == 3:
                file.create_dataset(name, data=rng.choice([[["a"]], ["b", "c"]]), dtype=h5py.string_dtype())
            elif kind == 4:
                file.create_group(name)
            elif kind == 5:
                file.create_dataset(name, arrays[name], np.float32, external=[("/etc/passwd", 0, 320)])
            elif kind == 6:
                attribute = rng.choice(["x", b"\xff", [1, 2], 0.5, math.nan, math.inf, np.zeros((0,)), h5py.Empty("f")])
                file.attrs["sample_rate"] = attribute
        if kind == 7:
            path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
        used(lambda: Hdf5Signals(str(root), path.name, None, None, NO_SPLIT, 100), (kind, name))  # noqa: B023


def test_spectrograms_and_their_manifests(tmp_path: Path) -> None:
    overrides = dict(item.removeprefix("data.").split("=") for item in write_corpus(tmp_path, train=3) if item.startswith("data."))
    folders = {name: overrides[name] for name in overrides if name.endswith("_dir")}
    files = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".json", ".npy", ".txt"))
    for _, rng in generators("spectrograms", 100):
        path = rng.choice(files)
        before = path.read_bytes()
        content = damaged(before, rng)
        if path.suffix == ".json" and rng.random() < 0.7:
            content = json.dumps(changed(json.loads(before), rng)).encode()
        path.write_bytes(content)
        used(lambda: Featurised(**folders, frame_rate=100, pad_value=None), (path.name, content[:300]))
        path.write_bytes(before)


def test_headers_of_recordings(root: Path) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32)
    kinds = [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAV", "IMA_ADPCM"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("AIFF", "PCM_16"),
        ("MP3", None),
    ]
    for number, rng in generators("audio", 200):
        kind, subtype = rng.choice(kinds)
        path = root / f"{number}.bin"
        soundfile.write(path, samples, rng.choice([8000, 44_100]), format=kind, subtype=subtype)
        content = bytearray(path.read_bytes())
        if rng.random() < 0.7:  # the header
            content[:60] = damaged(bytes(content[:60]), rng)
            place = rng.randrange(4, 44)
            content[place : place + rng.choice([1, 2, 4])] = rng.randbytes(4)
        else:
            content = bytearray(damaged(bytes(content), rng))
        path.write_bytes(content)
        received = (number, kind, bytes(content[:80]))
        whole, peak = peak_megabytes(lambda: answer(lambda: read_recording(path, 16_000), received))  # noqa: B023
        assert peak < 300, (peak, received)
        assert isinstance(whole, str) or (len(whole) and np.isfinite(whole).all()), received
        blocks = answer(lambda: list(RecordingReader(bytes(content), 16_000).blocks()), received)  # noqa: B023
        assert isinstance(blocks, str) or isinstance(whole, str) or sum(map(len, blocks)) == len(whole), received
        answer(lambda: read_header(path, None), received)  # noqa: B023
        path.unlink()


ARPA = (
    "\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n-99\t<s>\t-0.1\n-0.5\ta\t-0.3\n-0.7\tb\n-0.9\t</s>\n\n\\2-grams:\n-0.1\ta b\n\n\\end\\\n"
)


def test_language_models_and_lexicons(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(vocabulary=["", " ", *"abcdef"])
    for _, rng in generators("arpa", 200):
        lines = ARPA.splitlines()
        place = rng.randrange(len(lines))
        fields = lines[place].split("\t")
        fields[rng.randrange(len(fields))] = str(value(rng))
        lines[place] = "\t".join(fields)
        content = "\n".join(lines).encode(errors="surrogatepass")
        content = damaged(content, rng) if rng.random() < 0.4 else content
        packed = rng.random() < 0.4
        path = tmp_path / ("lm.arpa.gz" if packed else "lm.arpa")
        path.write_bytes(damaged(gzip.compress(content), rng) if packed else content)
        model = answer(lambda: NGram.read(path), content)  # noqa: B023
        if isinstance(model, NGram):
            for history in (("<s>",), ("a",), ("zzz", "a")):
                assert -1e6 < model.log_prob(history, rng.choice(["a", "b", "zzz", "</s>"])) <= 300, content
    for _, rng in generators("lexicon", 150):
        content = damaged(f"a\ta a\nbad\n{rng.choice(TEXTS)}\t{rng.choice(TEXTS)}\nface f a c e\n".encode(errors="surrogatepass"), rng)
        (tmp_path / "words.txt").write_bytes(content)
        spellings = answer(lambda: read_lexicon(tmp_path / "words.txt", tokenizer), content)
        for word, found in spellings.items() if isinstance(spellings, dict) else ():
            assert word.strip(), content
            assert all(0 < label < len(tokenizer.vocabulary) for spelling in found for label in spelling), content


def test_normalisation_of_texts() -> None:
    figures = ["1", "12", "007", "1,234", "1,23", "3.5", "24.12.2025", "1.2.3.4", "9" * 28, "٣٤", "1e5", "0.", "-3", "5%", "²", "1,234,5.6"]
    for _, rng in generators("normalize", 250):
        pattern = "".join(
            rng.choice(["a", "(", ")", "[", "]", "*", "\\1", "(?P<x>.)", ".", "+", "{2}", "|", ":"]) for _ in range(rng.randrange(1, 6))
        )
        replacement = "".join(rng.choice(["b", "\\1", "\\9", "\\g<x>", "\\g<", "\\q", ""]) for _ in range(2))
        steps = [
            *rng.sample(list(STEPS), 2),
            f"numbers:{rng.choice(['en', 'de', 'fr', 'am', 'id', 'ja', 'xx', ''])}",
            f"replace:{pattern}:{replacement}",
        ]
        rng.shuffle(steps)
        text = " ".join(rng.choice([*figures, *TEXTS, "a", "ab"]) for _ in range(6))
        normalize = answer(lambda: normalizer(steps[: rng.randrange(1, 5)]), steps)  # noqa: B023
        if callable(normalize):
            assert isinstance(normalize(text), str), (steps, text)


def test_numbers_of_configs() -> None:
    schemas = [each for options in SCHEMAS.values() for each in options.values()] + list(COMMANDS.values())
    fields = [
        (each, field) for each in schemas for field in dataclasses.fields(each) if "int" in str(field.type) or "float" in str(field.type)
    ]
    for _, rng in generators("numbers", 350):
        schema, field = rng.choice(fields)
        node = OmegaConf.structured(schema)
        given = rng.choice([number for number in NUMBERS if "int" not in str(field.type) or isinstance(number, int)])
        given = [given] if "list" in str(field.type) else {"a": given} if "dict" in str(field.type) else given
        try:
            node[field.name] = given
        except Exception:  # noqa: BLE001 # OmegaConf has refused its type
            continue
        problems = answer(lambda: find_node_problems(node, ""), (schema, field.name, given))  # noqa: B023
        held = [problem for problem in problems if not isinstance(problem, str) and problem.path == field.name]
        for number in given if isinstance(given, list) else given.values() if isinstance(given, dict) else [given]:
            nonsense = number is not None and not abs(number) <= 2**63
            assert not nonsense or held or (field.name == "pad_value" and not math.isnan(number)), (schema, field.name, given)


def test_typed_values_of_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [
        "optimizer.lr",
        "optimizer.weight_decay",
        "trainer.epochs",
        "trainer.gradient_clip_val",
        "data.batch_seconds",
        "model.channels",
        "seed",
    ]
    keys += [
        "data.train_size",
        "features.hop",
        "features.window",
        "features.sample_rate",
        "model.dilations",
        "backend.threads",
        "data.num_workers",
    ]
    typed = [
        "inf",
        "-inf",
        "nan",
        "1e400",
        "-1",
        "0",
        "1e-9",
        "100000000000000",
        "9" * 400,
        "9" * 5000,
        "[]",
        "[inf]",
        "{a:1}",
        "null",
        "true",
        "x",
        "'",
        "${x}",
        "[" * 50,
        "",
    ]
    commands = {
        "transcribe": ["window", "chunk", "nbest", "raw_rate"],
        "serve": ["port", "max_seconds", "queue"],
        "lm": ["order"],
        "evaluate": ["seed"],
    }
    for _, rng in generators("typed", 2):
        given = [f"{rng.choice(keys)}={rng.choice(typed)}", "data=synthetic"]
        answer(lambda: compose(given), given)  # noqa: B023
        name = rng.choice(list(commands))
        given = [f"{rng.choice(commands[name])}={rng.choice(typed)}"]
        answer(lambda: compose_command(COMMANDS[name], given), given)  # noqa: B023
    assert not files_below(tmp_path)
