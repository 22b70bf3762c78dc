"""The notebooks in a browser: a slider is moved in a running JupyterLab, and the drawn picture
changes.

Needs Chromium with its driver and selenium. On Debian: `apt-get install chromium chromium-driver`,
and `pip install selenium`; elsewhere any Chromium whose driver is on the path.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

ROOT = Path(__file__).parents[1]
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
SECONDS = 240
pytestmark = [
    pytest.mark.skipif(
        os.environ.get("SIMNPO_LAB_BROWSER") != "1",
        reason="`make browser` moves sliders in a browser, which takes minutes",
    ),
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason=(
            "no Chromium with its driver on the path: on Debian, apt-get install chromium "
            "chromium-driver"
        ),
    ),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab on a copy of the notebooks, on this machine only."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    token, log = secrets.token_hex(16), (folder / "log").open("w")
    environment = os.environ | {
        "SIMNPO_LAB_QUICK": "1",
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--ip=127.0.0.1",
        "--port=0",
        "--allow-root",
    ]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder / 'notebooks'}"]
    command += [
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        yield f"{address(folder / 'runtime', server)}?token={token}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def address(runtime: Path, server: subprocess.Popen[bytes]) -> str:
    """Where the server listens, once it answers."""
    import json

    until = time.monotonic() + SECONDS
    while time.monotonic() < until and server.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            try:
                url = json.loads(file.read_text())["url"]
                urllib.request.urlopen(f"{url}api", timeout=5).close()
                return url
            except (OSError, URLError, ValueError):
                pass
        time.sleep(0.5)
    raise RuntimeError(f"JupyterLab did not start:\n{(runtime.parent / 'log').read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is missing: pip install selenium"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1500,1400")
    service = webdriver.ChromeService(executable_path=DRIVER)
    one = webdriver.Chrome(options=options, service=service)
    one.set_script_timeout(SECONDS)
    yield one
    one.quit()


RUN_ALL = """
const done = arguments[arguments.length - 1], path = arguments[0], app = window.jupyterapp;
app.started
  .then(() => app.commands.execute("docmanager:open", {path: path, kernel: {name: "python3"}}))
  .then(panel => panel.context.ready.then(() => panel.sessionContext.ready))
  .then(() => app.commands.execute("notebook:run-all-cells"))
  .then(() => done("ran"), error => done(String(error)));
"""
# A picture as it is drawn now, and whether it has been decoded.
PIXELS = """
const image = document.querySelectorAll("img.widget-image")[arguments[0]];
if (!image || !image.complete || !image.naturalWidth) return null;
const canvas = document.createElement("canvas");
canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
canvas.getContext("2d").drawImage(image, 0, 0);
return canvas.toDataURL();
"""


def pixels(browser: Any, index: int, different_from: str | None = None) -> str:
    """The drawn picture, waiting until there is one, and one unlike another; fails where none
    comes.
    """
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        found = browser.execute_script(PIXELS, index)
        if found is not None and found != different_from:
            return found
        time.sleep(0.2)
    raise AssertionError(f"picture {index} was not drawn, or did not change")


@pytest.mark.parametrize(
    ("name", "slider", "picture"),
    [
        ("01_objectives", "β", 0),
        ("03_markov_chains", "leakage", 0),
        ("03_markov_chains", "moment", 2),
    ],
)
def test_a_slider_moved_in_the_browser_changes_the_drawn_picture(
    lab: str, browser: Any, name: str, slider: str, picture: int, tmp_path: Path
):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    if name not in browser.current_url:
        url, token = lab.split("?")
        browser.get(f"{url}lab/tree/{name}.ipynb?reset&{token}")
        assert browser.execute_async_script(RUN_ALL, f"{name}.ipynb") == "ran"
    assert not browser.find_elements(
        By.CSS_SELECTOR, ".jp-OutputArea-output[data-mime-type*='stderr'] .ansi-red-fg"
    )
    before = pixels(browser, picture)
    path = (
        "//div[contains(@class, 'widget-slider')][label[normalize-space() = "
        f"'{slider}']]//*[@role = 'slider']"
    )
    handle = browser.find_elements(By.XPATH, path)[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    for _ in range(4):
        handle.send_keys(Keys.ARROW_RIGHT)
    after = pixels(browser, picture, different_from=before)
    assert after.startswith("data:image/png") and after != before
    if folder := os.environ.get("SIMNPO_LAB_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"{name}-{slider}.png"))
