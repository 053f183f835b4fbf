"""The page of the service in a real browser, with a microphone that plays recorded speech."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import SHARED_DATA

import speechtrain

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
STRINGS = SHARED_DATA / "fsdd_strings"
SCREENSHOTS = os.environ.get("SPEECHTRAIN_SCREENSHOTS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"),
    pytest.mark.skipif(not STRINGS.is_dir(), reason="no recorded speech beside the checkout"),
]

DATA = ["data=manifest", f"data.root={STRINGS}", "data.train=train.jsonl", "data.val=valid.jsonl", "data.test=test.jsonl"]
LIVE = [
    *DATA,
    "data.batch_size=16",
    "features=logmel_8k",
    "features.normalize=none",
    "features.top_db=null",
    "features.preemphasis=0",
    "tokenizer=word",
    "augment.recombine_prob=0.7",
    "model=conformer",
    "model.chunk_frames=8",
    "model.left_chunks=8",
    "model.n_layers=3",
    "trainer.epochs=16",
]
OFFLINE = ["experiment=digit_strings", f"data.root={STRINGS}", "trainer.epochs=12"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that streams and one that hears whole utterances, both of which know digits."""
    folder = tmp_path_factory.mktemp("digits")
    for name, options in (("live", LIVE), ("offline", OFFLINE)):
        plain = ["backend.threads=1", "tracking=[]", "report.enabled=false", f"hydra.run.dir={folder / name}"]
        command = [sys.executable, "-m", "speechtrain", *options, *plain]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return {name: folder / name for name in ("live", "offline")}


@pytest.fixture(scope="module")
def spoken_strings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three strings of digits with pauses of a second."""
    path = tmp_path_factory.mktemp("microphone") / "digits.wav"
    pause = np.zeros(8000, np.float32)
    said = [soundfile.read(STRINGS / "audio" / f"test_{number:04d}.flac", dtype="float32")[0] for number in (1, 2, 4)]
    soundfile.write(path, np.concatenate([pause, *(part for each in said for part in (each, pause))]), 8000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def address(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = ", ".join(f"{name}: {folder}" for name, folder in runs.items())
    command = [sys.executable, "-m", "speechtrain.serve", f"from={{{models}}}", "port=0"]
    server = subprocess.Popen(command, cwd=tmp_path_factory.mktemp("server"), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = next(line for line in server.stdout if line.startswith("serving"))
    yield line.split()[1].replace("127.0.0.1", "localhost")
    server.terminate()
    server.wait(60)


@pytest.fixture
def browse(spoken_strings: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open a browser of a width in light or dark, whose microphone plays the recording once."""
    from selenium import webdriver

    drivers = []

    def browser(width: int, scheme: str) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        plays = f"--use-file-for-fake-audio-capture={spoken_strings}%noloop"
        fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", plays]
        profile = f"--user-data-dir={tmp_path / str(len(drivers))}"
        plain = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", profile]
        for argument in (*plain, *fake):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
        drivers.append(driver)
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        return driver

    yield browser
    for driver in drivers:
        driver.quit()


def wait_until(what: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


def text_of(browser: Any, name: str) -> str:
    return str(browser.execute_script("return document.getElementById(arguments[0]).textContent", name)).strip()


def choose(browser: Any, address: str, model: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    browser.get(address)
    wait_until(lambda: bool(browser.find_elements(By.CSS_SELECTOR, "#model option")))
    Select(browser.find_element(By.ID, "model")).select_by_visible_text(model)


def picture(browser: Any, name: str) -> None:
    if SCREENSHOTS:
        browser.save_screenshot(str(Path(SCREENSHOTS) / f"serve_{name}.png"))


def fits(browser: Any) -> bool:
    return bool(browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"))


def elsewhere(browser: Any, address: str) -> set[str]:
    """Addresses of other hosts that the browser has asked."""
    asked = set()
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            asked.add(event["params"].get("url") or event["params"]["request"]["url"])
    host = address.partition("//")[2]
    return {each for each in asked if not each.startswith((f"http://{host}/", f"ws://{host}/", "data:", "blob:", "chrome"))}


@pytest.mark.parametrize(("model", "width", "scheme"), [("live", 1400, "light"), ("offline", 400, "dark")])
def test_what_the_microphone_hears_becomes_the_text_of_transcribe(
    browse: Callable[..., Any], address: str, runs: dict[str, Path], spoken_strings: Path, model: str, width: int, scheme: str
) -> None:
    from selenium.webdriver.common.by import By

    expected = speechtrain.load(str(runs[model])).transcribe(spoken_strings).text
    assert len(expected.split()) >= 8
    browser = browse(width, scheme)
    choose(browser, address, model)
    browser.find_element(By.ID, "record").click()
    wait_until(lambda: bool(browser.find_elements(By.CSS_SELECTOR, ".partial")))
    picture(browser, f"{width}_{scheme}_live")
    time.sleep(soundfile.info(spoken_strings).duration)
    browser.find_element(By.ID, "record").click()
    wait_until(lambda: text_of(browser, "record-text") == "Record")
    assert " ".join(text_of(browser, "text").split()) == expected
    words = browser.find_elements(By.CSS_SELECTOR, "#text button.word")
    assert [word.text for word in words] == expected.split()
    words[1].click()
    wait_until(lambda: [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".playing")] == [words[1].text])
    picture(browser, f"{width}_{scheme}")
    wait_until(lambda: not browser.find_elements(By.CSS_SELECTOR, ".playing"))
    assert fits(browser)
    assert elsewhere(browser, address) == set()
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")] == []


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1400, "dark")])
def test_a_file_that_is_dropped_has_its_text_and_one_that_is_none_says_why(
    browse: Callable[..., Any], address: str, runs: dict[str, Path], spoken_strings: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    from selenium.webdriver.common.by import By

    browser = browse(width, scheme)
    choose(browser, address, "offline")
    (tmp_path / "none.wav").write_bytes(b"no audio")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "none.wav"))
    wait_until(lambda: "cannot be read as audio" in text_of(browser, "status"))
    browser.find_element(By.ID, "file").send_keys(str(spoken_strings))
    wait_until(lambda: "transcribed in" in text_of(browser, "status"))
    assert " ".join(text_of(browser, "text").split()) == speechtrain.load(str(runs["offline"])).transcribe(spoken_strings).text
    browser.find_element(By.CSS_SELECTOR, "#text .word").click()
    wait_until(lambda: len(browser.find_elements(By.CSS_SELECTOR, ".playing")) == 1)
    picture(browser, f"{width}_{scheme}_file")
    assert fits(browser)


def test_the_page_of_the_api_loads_nothing_from_elsewhere(browse: Callable[..., Any], address: str) -> None:
    from selenium.webdriver.common.by import By

    browser = browse(1400, "light")
    browser.get(f"{address}/docs")
    wait_until(lambda: "/v1/audio/transcriptions" in browser.find_element(By.TAG_NAME, "body").text)
    assert elsewhere(browser, address) == set()
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
