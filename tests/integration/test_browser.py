"""What a person sees in the MLflow UI, in a real browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import TINY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SCREENSHOTS = os.environ.get("SPEECHTRAIN_SCREENSHOTS")
"""Folder to write pictures of the pages to (`make screenshots`)."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"),
]

WITHOUT = [item for item in TINY if not item.startswith(("tracking", "report"))]
SWEEP = [*WITHOUT, "model=mlp", "trainer.epochs=4", "hydra.sweeper.study_name=study"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of three trials and a run alone."""
    folder = tmp_path_factory.mktemp("browser")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    sweep = ["-m", *SWEEP, "optimizer.lr=0.003,0.01,0.0003"]
    run = ["model=tdnn", "model.channels=24", "trainer.epochs=8", "data.batch_seconds=15", *WITHOUT]
    if SCREENSHOTS:  # something to look at
        space = ["optimizer.lr=tag(log,interval(1e-3,2e-2))", "model.dropout=interval(0.0,0.4)", "model.channels=48,64,96"]
        settings = ["hydra.sweeper.n_trials=12", "hydra.sweeper.n_jobs=2", "hydra.sweeper.study_name=study", "backend.threads=1"]
        sweep = ["-m", *space, *settings, "data.limit_utterances=400", "trainer.epochs=5"]
        run = ["backend.threads=1", "trainer.epochs=8"]
    for arguments in (sweep, run):
        done = subprocess.run(
            [sys.executable, "-m", "speechtrain", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def link(place: Path) -> Iterator[str]:
    """The link that `speechtrain ui` prints in that folder, which works until Ctrl-C ends the command."""
    command = [sys.executable, "-m", "speechtrain.ui", "port=0", "browser=false"]
    with (place / "ui.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=place, stdout=log, stderr=log)
    until = time.monotonic() + 120
    while "MLflow" not in (place / "ui.log").read_text() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    yield (place / "ui.log").read_text().removeprefix("MLflow").strip()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert not psutil.wait_procs(children, timeout=10)[1]


@pytest.fixture(scope="module")
def ui(link: str) -> str:
    """Address of the MLflow UI on that folder."""
    return link.partition("/#")[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1500,950"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def show(browser: Any, address: str, *texts: str, frame: bool = False, name: str | None = None) -> str:
    """Open a page and wait until it shows these texts; what else it shows."""
    from selenium.webdriver.common.by import By

    browser.get("about:blank")
    browser.get(address)
    until = time.monotonic() + 60
    seen = ""
    while time.monotonic() < until:
        browser.switch_to.default_content()
        if frame:
            frames = browser.find_elements(By.TAG_NAME, "iframe")
            if not frames:
                time.sleep(0.3)
                continue
            browser.switch_to.frame(frames[0])
        seen = browser.find_element(By.TAG_NAME, "body").text
        if all(text in seen for text in texts):
            break
        time.sleep(0.3)
    missing = [text for text in texts if text not in seen]
    assert not missing, f"{missing} not in:\n{seen[:3000]}"
    browser.switch_to.default_content()
    if name is not None:
        picture(browser, name)
    return seen


def picture(browser: Any, name: str) -> None:
    """For the docs, without MLflow's assistant beside it."""
    from selenium.webdriver.common.by import By

    if SCREENSHOTS:
        for button in browser.find_elements(By.CSS_SELECTOR, "[data-component-id='mlflow.assistant.chat_panel.close']"):
            button.click()
        time.sleep(1.5)
        browser.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


def runs_of(place: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    found = MlflowClient(f"sqlite:///{place / 'mlflow.db'}").search_runs(["1"])
    sweep = next(run for run in found if run.data.tags.get("speechtrain.kind") == "sweep")
    alone = next(run for run in found if "speechtrain.study" not in run.data.tags)
    return {"sweep": sweep, "alone": alone, "trials": [run for run in found if "speechtrain.trial" in run.data.tags]}


@pytest.mark.slow
def test_the_list_of_runs_shows_error_rates_and_the_sweep_with_its_trials_under_it(browser: Any, link: str, place: Path) -> None:
    from selenium.webdriver.common.by import By

    show(browser, link, "study", "tdnn-", "test/wer", "val/wer", "values/best val", "best/val/wer", "Duration")
    assert "IS+NULL" in browser.current_url, "runs that test the settings are left out"
    browser.find_element(By.CSS_SELECTOR, ".ag-row button[data-component-id*='runnamecellrenderer']").click()
    until = time.monotonic() + 20
    names = [run.info.run_name for run in runs_of(place)["trials"]]
    seen = ""
    while time.monotonic() < until and not all(name in seen for name in names):
        seen = browser.find_element(By.TAG_NAME, "body").text
        time.sleep(0.3)
    assert all(name in seen for name in names), seen[:2000]
    picture(browser, "runs")


def test_the_charts_of_the_list_are_those_of_a_training_first(browser: Any, link: str) -> None:
    seen = show(browser, f"{link}&compareRunsMode=CHART", "training\n(4)", "val/wer", "val/cer", "values\n(5)", name="list_charts")
    assert seen.index("training\n(4)") < seen.index("val\n(3)") < seen.index("test\n") < seen.index("values\n(5)")


@pytest.mark.slow
def test_a_run_shows_its_charts(browser: Any, ui: str, place: Path) -> None:
    run = runs_of(place)["alone"]
    show(browser, f"{ui}/#/experiments/1/runs/{run.info.run_id}/model-metrics", "train", "val", "values", name="charts")


def test_the_error_report_opens_inside_the_ui(browser: Any, ui: str, place: Path) -> None:
    run = runs_of(place)["alone"]
    address = f"{ui}/#/experiments/1/runs/{run.info.run_id}/artifacts/error_report.html"
    show(browser, address, "word error rate", "Worst utterances", frame=True, name="error_report")


def test_the_sweeps_report_opens_inside_the_ui(browser: Any, ui: str, place: Path) -> None:
    run = runs_of(place)["sweep"]
    address = f"{ui}/#/experiments/1/runs/{run.info.run_id}/artifacts/sweep_report.html"
    show(browser, address, "saved by pruning", "Timeline", "All trials", frame=True, name="sweep_report")


def test_the_transcripts_are_a_table(browser: Any, ui: str, place: Path) -> None:
    run = runs_of(place)["alone"]
    address = f"{ui}/#/experiments/1/runs/{run.info.run_id}/artifacts/transcripts.json"
    show(browser, address, "reference", "hypothesis", "confidence", "test-0000", name="transcripts")
