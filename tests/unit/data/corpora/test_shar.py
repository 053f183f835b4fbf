"""A corpus in tar files gives the batches that it gives as single files, also from a server that fails; what is wrong is named."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from certificates import certificate
from conftest import prepared, thinned
from lhotse import CutSet
from range_server import serving

from speechtrain import shard
from speechtrain.data import read_ahead, storage
from speechtrain.data.corpora import shar
from speechtrain.data.corpora.mix import Mix
from speechtrain.data.corpus import Corpus, Cut
from speechtrain.data.loader import Loader
from speechtrain.data.read_ahead import ReadAhead
from speechtrain.data.storage import Part, Storage, StorageError
from speechtrain.data.table_cache import TableCache
from speechtrain.data.task_data import TaskData
from speechtrain.errors import ConfigError, DataError

WORDS = ["seven", "eight", "nine", "grüße", "one two", "zero", "four", "five", "six", "three", "two", "ten"]
KEYS = [
    "features=logmel_8k",
    "tracking=[]",
    "data.batch_seconds=3",
    "data.num_buckets=2",
    "data.on_shared.audio=allow",
    "data.split.val=25",
]
PATIENT = ["data.retries=6", "data.timeout=20"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Single files in `files`, and in `shards` what is made of them: tar files of at most five utterances."""
    root = tmp_path_factory.mktemp("made")
    write_files(root / "files")
    keys = ["data=manifest", f"data.root={root / 'files'}", f"out={root / 'shards'}", "shard_size=5"]
    assert shard.run(keys) == 0
    return root


def write_files(root: Path) -> None:
    """A manifest of single files, of parts of a long one in stereo, and of an MP3 file."""
    (root / "audio").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(WORDS):
        soundfile.write(root / "audio" / f"{number}.wav", rng.uniform(-0.5, 0.5, 8000), 8000)
        lines.append({"audio_filepath": f"audio/{number}.wav", "utt_id": f"train-{number}", "text": text, "speaker": f"s{number % 4}"})
    del lines[3]["speaker"]
    lines[4]["mood"] = "calm"
    soundfile.write(root / "long.flac", rng.uniform(-0.9, 0.9, (16000, 2)), 8000, subtype="PCM_24")
    soundfile.write(root / "talk.mp3", rng.uniform(-0.9, 0.9, 16000), 16000, format="MP3")
    lines += [{"audio_filepath": "long.flac", "text": "part", "offset": start, "duration": 0.5, "speaker": "p"} for start in (0, 0.7, 1.5)]
    lines.append({"audio_filepath": "talk.mp3", "text": "talk", "speaker": "p"})
    (root / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


@pytest.fixture
def files(made: Path) -> Path:
    """Single files, which are only read."""
    return made / "files"


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """A copy of the tar files, to be spoiled."""
    return shutil.copytree(made / "shards", tmp_path / "shards")


def lines_of(root: Path) -> list[dict[str, Any]]:
    """Lines of an index."""
    return list(map(json.loads, gzip.decompress((root / "index.jsonl.gz").read_bytes()).splitlines()))


def rewrite(root: Path, lines: list[dict[str, Any]]) -> None:
    """Write an index."""
    (root / "index.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))


def of_files(files: Path, *more: str) -> TaskData:
    return prepared(["data=manifest", f"data.root={files}", "data.split.by=utterance", "data.check_hours=0", *KEYS, *more])


def of_shards(root: Any, *more: str) -> TaskData:
    return prepared(["data=shar", f"data.root={root}", "data.split.by=utterance", *KEYS, *PATIENT, *more])


def source(root: Any, *, retries: int = 1) -> shar.Shar:
    return shar.Shar(str(root), {"by": "speaker", "val": 0, "test": 0, "seed": 0}, 4, retries, 20.0)


def open_shards(root: Any, *, retries: int = 1) -> Corpus:
    return source(root, retries=retries).load(None)


def loader(data: TaskData) -> Loader:
    found = data.loader("train", shuffle=True, augment=True)
    assert found is not None
    return found


def assert_same(first: Any, second: Any) -> None:
    for one, two in zip(first, second, strict=True):
        assert one.ids == two.ids
        np.testing.assert_array_equal(one.features, two.features)
        np.testing.assert_array_equal(one.targets, two.targets)


def first_part(root: Path) -> tuple[Path, dict[str, Any]]:
    """The first tar file and the line of its first utterance."""
    lines = lines_of(root)
    return root / lines[1]["shard"], lines[2]


def test_lhotse_reads_what_was_written(files: Path, shards: Path) -> None:
    data = of_files(files, "data.split.val=0")
    cuts = {cut.id: cut for cut in CutSet.from_shar(in_dir=shards / "train")}
    assert [path.name for path in sorted((shards / "train").glob("*.tar"))] == [f"recording.00000{number}.tar" for number in range(4)]
    assert list(cuts) == [cut.id for cut in data.corpus.splits["train"]]
    for cut in data.corpus.splits["train"]:
        theirs = cuts[cut.id]
        assert (theirs.supervisions[0].text, theirs.supervisions[0].speaker) == (cut.text, cut.speaker)
        samples = theirs.load_audio()
        assert samples.shape == (cut.channels, cut.num_samples)
        np.testing.assert_array_equal(samples.mean(axis=0, dtype=np.float32), data.corpus.read(cut, cut.sample_rate))
    assert cuts["train-4"].custom["mood"] == "calm"
    ours = prepared(["data=lhotse", f"data.root={shards}", "data.train=train", *KEYS, "data.split.val=0"])
    assert [cut.id for cut in ours.corpus.splits["train"]] == [name for name in cuts if not name.startswith("long")]  # those in stereo


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_single_files_bit_by_bit_whatever_the_server_does(files: Path, shards: Path, workers: int) -> None:
    expected = of_files(files)
    with serving(shards, fails_each=5, cuts_each=7) as server:
        for root in (shards, server.address):
            data = of_shards(root, f"data.num_workers={workers}")
            assert data.fingerprint("train", audio=False) == expected.fingerprint("train", audio=False)
            data.corpus.read(data.corpus.splits["val"][0], 8000)  # the connection is not for processes that are forked from here on
            for epoch in range(2):
                batches = [loader(each) for each in (expected, data)]
                for each in batches:
                    each.set_epoch(epoch)
                assert_same(*batches)
            resumed = loader(data)
            resumed.set_epoch(1, done=3)
            assert_same(list(batches[0])[3:], resumed)
    assert server.failed > 5


def test_all_is_read_before_the_training_where_that_is_asked_for(files: Path, shards: Path) -> None:
    expected, data = of_files(files, "data.check_hours=1", "data.feature_cache=null"), of_shards(shards, "data.check_hours=1")
    assert data.cache.checksums == expected.cache.checksums
    (shards / "train" / "recording.000000.tar").unlink()
    assert_same(loader(expected), loader(data))


def test_each_of_several_processes_fetches_its_share_alone(shards: Path) -> None:
    with serving(shards) as server:
        asked = []
        for rank in range(2):
            batches = loader(of_shards(server.address, "augment=none"))
            batches.take_share(rank, 2)
            server.asked.clear()
            ids = [name for batch in batches if not batch.is_filler for name in batch.ids]
            assert len({place for place in server.asked if place[0].endswith(".tar")}) == len(ids)
            asked.append(set(ids))
        assert not asked[0] & asked[1]
        assert len(asked[0] | asked[1]) == len(batches._ids)


def test_a_mix_fetches_ahead_from_the_corpora_that_it_is_made_of(shards: Path) -> None:
    with serving(shards) as server:
        corpus = Mix({"far": source(server.address), "near": source(shards)}, {}).load(None)
        cuts = corpus.splits["train"]
        assert corpus.prefetch is not None
        corpus.prefetch(cuts, server)
        for cut in cuts[:16]:
            np.testing.assert_array_equal(corpus.read(cut, 8000), corpus.read(cuts[cuts.index(cut) + 16], 8000))
        assert len(server.asked) == 17, "the index, and each utterance once"


def cut_off(root: Path) -> None:
    tar, _ = first_part(root)
    os.truncate(tar, tar.stat().st_size - 1024)


def other_bytes(root: Path) -> None:
    tar, line = first_part(root)
    content = bytearray(tar.read_bytes())
    content[line["offset"] + line["size"] // 2] ^= 1
    tar.write_bytes(content)


WRONG = {
    "gone": (lambda root: first_part(root)[0].unlink(), r"no such file"),
    "cut off": (cut_off, r"has \d+ bytes, its index says \d+; it was changed or cut off"),
    "other bytes": (other_bytes, r"holds other bytes from 512 to \d+; it was changed or cut off"),
}


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_tar_file_that_is_not_what_was_indexed_is_named_with_the_utterance(shards: Path, wrong: str, remote: bool) -> None:
    change, message = WRONG[wrong]
    change(shards)
    with serving(shards) if remote else nullcontext() as server:
        root = server.address if server is not None else shards
        corpus = open_shards(root)
        with pytest.raises(StorageError) as raised:
            corpus.read(corpus.splits["train"][0], 8000)
    text = str(raised.value)
    assert text.startswith("utterance 'train-0': ")
    assert f"{root}/train/recording.000000.tar" in text
    assert re.search(message, text)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_goes_away_ends_the_training_with_its_address(shards: Path, workers: int) -> None:
    with serving(shards) as server:
        data = of_shards(server.address, "data.retries=2", f"data.num_workers={workers}")
    message = rf"^utterance '\S+': {server.address}/train/recording\.\d+\.tar: 3 requests failed, the last: .*refused(?s:.*)-> see that the"
    with pytest.raises(StorageError, match=message):
        list(loader(data))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"login": "ann:right"}, r"refuses to show it \(401 Unauthorized\)\n    -> check the name and the password in data.root"),
        ({"ranges": False}, r"does not send parts of files"),
        ({"fails_each": 1}, r"3 requests failed, the last: the server answered 503"),
        ({"root": Path("/nowhere")}, r"index.jsonl.gz: there is no such file \(404 Not Found\)"),
    ],
)
def test_a_server_that_is_of_no_use_is_told_before_the_training(shards: Path, options: dict[str, Any], message: str) -> None:
    with serving(options.pop("root", shards), **options) as server, pytest.raises(StorageError, match=message) as raised:
        open_shards(server.address.replace("//", "//ann:wr0ng-word@"), retries=2)
    assert f"{server.address}/index.jsonl.gz" in str(raised.value)
    assert "wr0ng" not in str(raised.value)


def test_a_server_may_send_on_to_another_one_which_does_not_get_the_password(shards: Path) -> None:
    with serving(shards) as far, serving(shards, login="ann:word", moved_to=far.address) as near:
        corpus = open_shards(near.address.replace("//", "//ann:word@"))
        assert len(corpus.read(corpus.splits["train"][0], 8000)) == 8000
        assert len(far.asked) == 2
        assert far.authorized == 0
    with serving(shards) as server:
        server.moved_to = server.address
        with pytest.raises(StorageError, match=r"sends on from one address to the next"):
            open_shards(server.address)
        server.moved_to = "file:///etc"
        with pytest.raises(StorageError, match=r"leads to file://None, which cannot be read"):
            open_shards(server.address)


def test_neither_the_password_nor_anything_else_is_sent_without_encryption(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, key = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    with serving(shards) as plain, serving(shards, tls=(public, key), moved_to=plain.address) as safe:
        with pytest.raises(StorageError, match=r"sends on to 127.0.0.1 without encryption \(http\)\n    -> set data.root to"):
            open_shards(safe.address.replace("//", "//ann:word@"))
        assert not plain.asked


def test_a_password_is_for_one_scheme_host_and_port() -> None:
    origins = {storage._origin(urlsplit(each)) for each in ("https://host/a", "http://host/a", "https://other/a", "https://host:444/a")}
    assert len(origins) == 4
    assert storage._origin(urlsplit("https://HOST:443/b")) == storage._origin(urlsplit("https://host/a"))


@pytest.mark.parametrize(
    "place", ["http://host:port/a?token=s3cret-word", "http://[1/a?token=s3cret-word", "http://host:0/", "http://host:99999/"]
)
def test_a_place_to_go_to_that_is_no_address_is_told(shards: Path, place: str) -> None:
    with serving(shards) as server:
        server.moved_to = place
        with pytest.raises(StorageError, match=r"sends on to what is no address \('http.*'\)\n    -> check data.root") as raised:
            open_shards(server.address)
    assert "s3cret" not in str(raised.value)


def test_what_a_signed_root_does_not_show_is_told_without_the_signature(shards: Path) -> None:
    refusal = b"<Error><Code>SignatureDoesNotMatch</Code></Error>"
    message = r"\(403 Forbidden, SignatureDoesNotMatch\)\n    -> what stands behind the \?"
    with serving(shards, refusal=refusal) as server, pytest.raises(StorageError, match=message) as raised:
        open_shards(f"{server.address}/a?X-Amz-Expires=60&X-Amz-Signature=s3cret-word")
    assert "s3cret" not in str(raised.value)
    assert f"{server.address}/a/index.jsonl.gz: " in str(raised.value)


def test_credentials_that_can_no_longer_be_renewed_are_told(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import CredentialRetrievalError

    class Expired:
        def generate_presigned_url(self, *_: Any, **__: Any) -> str:
            raise CredentialRetrievalError(provider="custom-process", error_msg="token expired")

    monkeypatch.setattr(storage, "_s3_client", lambda *_: Expired())
    with pytest.raises(StorageError, match=r"s3://speech: .*token expired\n    -> renew or check the credentials of S3"):
        open_shards("s3://speech/corpus")


def test_an_index_in_a_folder_is_read_where_it_lies(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryDirectory", None)
    assert len(open_shards(shards).splits["train"]) == 16


def test_a_folder_may_have_a_per_cent_sign_and_fields_that_json_does_not_hold_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechtrain.data import prepare

    known = {"mood": "calm", "pitch": np.zeros(3)}
    cuts = [Cut("a", "text", 0.1, 8000, custom=known), Cut("b", "text", 0.1, 8000)]
    corpus = Corpus({"train": cuts, "val": [], "test": []}, read=lambda cut, rate: np.zeros(800, np.float32))
    monkeypatch.setattr(prepare, "list_corpus", lambda _: corpus)
    assert shard.run(["data=synthetic", f"out={tmp_path / '100%d'}"]) == 0
    assert [dict(cut.custom) for cut in open_shards(tmp_path / "100%d").splits["train"]] == [{"mood": "calm"}, {}]
    assert "field 'pitch' of 1 utterance left out, which JSON does not hold (the first: a ndarray in 'a')" in caplog.text


def test_https_is_read_where_the_certificate_is_trusted(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public, key = certificate(tmp_path)
    with serving(shards, tls=(public, key)) as server:
        with pytest.raises(StorageError, match=r"its certificate is not trusted \(self.signed certificate\)\n    -> check data.root, or"):
            open_shards(server.address)
        monkeypatch.setenv("SSL_CERT_FILE", str(public))
        corpus = open_shards(server.address)
        assert len(corpus.read(corpus.splits["train"][0], 8000)) == 8000


def test_a_connection_that_the_server_has_closed_is_opened_again_without_a_retry(shards: Path) -> None:
    with serving(shards) as server:
        corpus = open_shards(server.address, retries=0)
        server.hang_up = True
        for cut in corpus.splits["train"]:
            corpus.read(cut, 8000)


def test_a_name_and_a_password_are_sent(shards: Path) -> None:
    with serving(shards, login="ann:s3cret word") as server:
        assert len(open_shards(server.address.replace("//", "//ann:s3cret%20word@")).splits["train"]) == 16


@pytest.mark.parametrize(
    ("change", "message"),
    thinned(
        [
            ({"offset": 1 << 40}, r"index.jsonl.gz:3: lies from \d+ to \d+, behind the end of train/recording.000000.tar"),
            ({"offset": -1}, r"'offset' must be a whole number from 0"),
            ({"size": 1.5}, r"'size' must be a whole number"),
            ({"crc32": None}, r"'crc32' must be a whole number"),
            ({"duration": float("nan")}, r"'duration' must be a number of seconds above 0"),
            ({"sample_rate": 1}, r"is at 1 Hz"),
            ({"id": "a\nb"}, r"line ends or control characters"),
            ({"text": ["a"]}, r"'id' and 'text' must be texts"),
            ({"custom": [1]}, r"'custom' must be a JSON object"),
            ({"shard": "../outside.tar", "split": "train", "size": 9}, r"'shard' must be the path of a file in the corpus' folder"),
            ({"shard": "/etc/passwd", "split": "train", "size": 9}, r"'shard' must be the path of a file in the corpus' folder"),
            ({"shard": "a.tar", "split": "dev", "size": 9}, r"'split' must be train, val, test"),
        ],
        3,
    ),
)
def test_a_line_of_the_index_that_cannot_be_is_refused_with_its_number(shards: Path, change: dict[str, Any], message: str) -> None:
    lines = lines_of(shards)
    lines[2] |= change
    rewrite(shards, lines)
    with pytest.raises(DataError, match=message) as raised:
        open_shards(shards)
    assert str(raised.value).startswith(f"{shards}/index.jsonl.gz:3: ")
    assert "\n    -> " in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b'{"shar_index": 2}\n'), gzip.compress(b'{"shar_index": 1}\n')],
    ids=["empty", "no gzip", "of a later version", "without its keys"],  # compressed bytes hold the time
)
def test_what_is_no_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.jsonl.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"index.jsonl.gz.*(?s:.*)-> make the folder anew"):
        open_shards(tmp_path)


def test_an_index_that_was_read_is_kept_until_it_changes(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shar, "_WORTH_KEEPING", 1)
    read: list[str] = []
    add = shar._IndexReader._add
    monkeypatch.setattr(shar._IndexReader, "_add", lambda self, value, number: read.append(value) or add(self, value, number))

    def load() -> list[tuple[str, str, float]]:
        kept = source(shards)
        kept.table_cache = TableCache(tmp_path / "kept")
        corpus = kept.load(None)
        return [(cut.id, cut.text, float(corpus.read(cut, 8000).sum())) for cut in corpus.splits["train"]]

    first = load()
    assert len(first) == 16
    lines = len(read)
    assert load() == first
    assert len(read) == lines
    changed = lines_of(shards)
    changed[2]["text"] = "new"
    rewrite(shards, changed)
    assert [text for _, text, _ in load()] == ["new", *(text for _, text, _ in first[1:])]
    assert len(read) > lines


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        (np.round(np.linspace(-1, 1, 800) * 2**15).clip(max=2**15 - 1) / 2**15, ("FLAC", "PCM_16")),
        (np.round(np.linspace(-1, 1, 800) * 2**23).clip(max=2**23 - 1) / 2**23, ("FLAC", "PCM_24")),
        (np.linspace(-1.5, 1.5, 800), ("WAV", "FLOAT")),
    ],
)
def test_samples_without_a_file_are_stored_exactly(samples: Any, kind: tuple[str, str], tmp_path: Path) -> None:
    from speechtrain.data.corpora.shar_writer import write_shar

    given = samples.astype(np.float32)
    cuts = [Cut("a/b.c", "text", 0.1, 8000)]
    write_shar(Corpus({"train": cuts, "val": [], "test": []}, read=lambda cut, rate: given), tmp_path / "made", 10, refuse_bad=True)
    corpus = open_shards(tmp_path / "made")
    np.testing.assert_array_equal(corpus.read(corpus.splits["train"][0], 8000), given)
    (theirs,) = CutSet.from_shar(in_dir=tmp_path / "made" / "train")
    np.testing.assert_array_equal(theirs.load_audio()[0], given)
    tar, line = first_part(tmp_path / "made")
    info = soundfile.info(io.BytesIO(tar.read_bytes()[line["offset"] :][: line["size"]]))
    assert (info.format, info.subtype) == kind


def test_what_is_bad_is_left_out_or_refused_and_nothing_half_written_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "files")
    with (tmp_path / "files" / "train.jsonl").open("a") as lines:
        lines.write(json.dumps({"audio_filepath": "nan.wav", "text": "nan"}) + "\n")
    soundfile.write(tmp_path / "files" / "nan.wav", np.full(800, np.nan), 8000, subtype="FLOAT")
    keys = ["data=manifest", f"data.root={tmp_path / 'files'}", f"out={tmp_path / 'made'}"]
    with pytest.raises(DataError, match=r"nan: .*nan.wav: holds 800 samples that are NaN"):
        shard.run([*keys, "data.on_bad=error"])
    assert [path.name for path in tmp_path.iterdir()] == ["files"]
    assert shard.run(keys) == 0
    assert "1 bad utterances left out" in caplog.text
    printed = capsys.readouterr().out
    assert "utterances  train 16, val 0, test 0" in printed
    assert f"read with   data=shar data.root={tmp_path / 'made'}" in printed
    with pytest.raises(ConfigError, match=r"out: .*made is there already"):
        shard.run(keys)


@pytest.fixture
def bucket(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a server of S3 with a bucket `speech`, in which the tar files lie under `corpus/`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "s3cret-word", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3")
    client.create_bucket(Bucket="speech")
    for path in filter(Path.is_file, shards.rglob("*")):
        client.upload_file(str(path), "speech", f"corpus/{path.relative_to(shards)}")
    yield client
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_a_bucket_are_those_of_single_files(files: Path, bucket: Any, workers: int) -> None:
    assert bucket.list_objects_v2(Bucket="speech")["KeyCount"] > 5
    assert_same(loader(of_files(files)), loader(of_shards("s3://speech/corpus", f"data.num_workers={workers}")))


@pytest.mark.slow
def test_a_bucket_that_is_not_what_was_indexed_is_named_without_secrets(shards: Path, bucket: Any) -> None:
    data = of_shards("s3://speech/corpus", "data.retries=1")
    tar, _ = first_part(shards)
    for change, message in (
        (lambda key: bucket.put_object(Bucket="speech", Key=key, Body=b"short"), r"has 5 bytes, its index says|does not reach"),
        (lambda key: bucket.delete_object(Bucket="speech", Key=key), r"there is no such file \(404 [\w ]+, NoSuchKey\)"),
    ):
        change(f"corpus/train/{tar.name}")
        with pytest.raises(StorageError, match=rf"^utterance '\S+': s3://speech/corpus/train/{tar.name}: .*({message})") as raised:
            list(loader(data))
        assert "Signature" not in str(raised.value)
    with pytest.raises(StorageError, match=r"s3://absent/corpus/index.jsonl.gz: there is no such file \(404 [\w ]+, NoSuchBucket\)"):
        of_shards("s3://absent/corpus")


@pytest.mark.parametrize("key", ["someone", None])
def test_credentials_that_a_bucket_refuses_are_told(shards: Path, key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    if key is not None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret-word")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with serving(shards, refusal=b"<Error><Code>InvalidAccessKeyId</Code></Error>") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.address)
        with pytest.raises(StorageError) as raised:
            open_shards("s3://speech/corpus")
    text = str(raised.value)
    assert text.startswith("s3://speech/corpus/index.jsonl.gz: the server refuses to show it (403 Forbidden, InvalidAccessKeyId)")
    assert "-> check the credentials of S3 (AWS_ACCESS_KEY_ID" in text
    assert "Signature" not in text


class _Slow(Storage):
    """Counts the bytes that were fetched and not yet taken."""

    def __init__(self) -> None:
        self.fetched = 0
        self.lock = threading.Lock()

    def address(self, name: str) -> str:
        return name

    def read(self, part: Part) -> bytes:
        with self.lock:
            self.fetched += part.size
        return bytes(part.size)

    def local(self, name: str) -> AbstractContextManager[Path]:
        raise NotImplementedError


def test_what_is_fetched_ahead_is_bounded_and_what_nobody_wants_any_more_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_MOST_BYTES", 1000)
    storage = _Slow()
    ahead, owner, other = ReadAhead(storage, 4), _Slow(), _Slow()
    parts = [Part("a", number * 100, 100) for number in range(50)]
    ahead.prefetch(parts, owner)
    for taken, part in enumerate(parts, start=1):
        assert ahead.take(part) == bytes(100)
        assert storage.fetched <= taken * 100 + 1000
        assert sum(each.size for each in ahead._pending) <= 1000
    assert storage.fetched == 5000, "each once"
    ahead.prefetch(parts[:5], owner)
    ahead.prefetch([Part("b", 0, 900)], other)
    ahead.prefetch([], owner)
    ahead.prefetch([], other)
    assert not ahead._pending
    assert not ahead._bytes
    assert ahead.take(parts[7]) == bytes(100)


@pytest.mark.parametrize("root", thinned(["http://host:99999/a", "ftp://host/a", "http://", "absent"], 4))
def test_a_root_that_cannot_be_read_is_a_mistake_in_the_config(root: str) -> None:
    with pytest.raises(ConfigError, match=r"data.root: "):
        of_shards(root)


def test_a_mistake_in_a_root_is_told_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"received ftp://ann:\*\*\*@host/a") as raised:
        of_shards("ftp://ann:s3cret-word@host/a")
    assert "s3cret" not in str(raised.value)
