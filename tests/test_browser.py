"""The notebooks in a browser, in wide and in narrow windows: what is pressed and moved in a running
JupyterLab answers, and the drawn pictures change.

Pictures of the windows go to the folder named by SIMNPO_LAB_SCREENSHOTS, for somebody to look at.

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
SECONDS = 60
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


RESULT = "training.result()"  # in the cell that trains by itself, if nobody has pressed the button
TRAINS, AFTER = "runs(context), strict", "# the end"
# What stands in place of the models, which take minutes to train: scores that grow with length.
SCORES = """
import pandas as pd
length = pd.Series([float(len(one.response.split())) for one in forget])
noise = 1 + pd.Series(range(len(length))) % 7 / 7
table = pd.DataFrame({"index": [one.index for one in forget], "length": length})
table = table.assign(ref=-0.2 * noise * length, retrained=-2.0 * noise * length)
"""


def shorten(path: Path, last: str, replaced: tuple[str, str] | None = None) -> None:
    """Keep a notebook up to the first cell in which `last` stands, and add one that ends it.

    The cell in which the first of `replaced` stands becomes the second.
    """
    import nbformat  # here, since it takes seconds that other tests need not wait for

    book: Any = nbformat.read(path, as_version=4)
    ends = next(at for at, cell in enumerate(book.cells) if f"\n{last}" in f"\n{cell.source}")
    book.cells = [*book.cells[: ends + 1], nbformat.v4.new_code_cell(AFTER)]
    for cell in book.cells:
        if replaced and replaced[0] in cell.source:
            cell.source = replaced[1]
    nbformat.write(book, path)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab on a copy of the notebooks, on this machine only."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    shorten(folder / "notebooks" / "03_markov_chains.ipynb", "player(recordings")
    shorten(folder / "notebooks" / "05_language_models.ipynb", "answers_view(", (TRAINS, SCORES))
    # Otherwise a question about news lies over the notebook.
    settings = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
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


RUN = """
const done = arguments[arguments.length - 1], [path, marker, which] = arguments;
let app;
// The page may have loaded before the program in it is there.
const there = resolve => window.jupyterapp ? resolve() : setTimeout(there, 100, resolve);
new Promise(there)
  .then(() => { app = window.jupyterapp; return app.started; })
  .then(() => app.commands.execute("docmanager:open", {path: path, kernel: {name: "python3"}}))
  .then(panel => panel.context.ready.then(() => panel.sessionContext.ready).then(() => panel))
  .then(panel => {
    const found = panel.content.widgets.findIndex(
      one => one.model.sharedModel.getSource().includes(marker));
    if (found < 0) throw new Error("no cell has " + marker);
    panel.content.activeCellIndex = found;
    app.commands.execute(which);
    done("ran");
  })
  .catch(error => done(String(error)));
"""
HIDE = "window.jupyterapp.commands.execute('application:toggle-left-area')"
# A picture as it is drawn now, and whether it has been decoded.
PIXELS = """
const image = arguments[0];
if (!image || !image.complete || !image.naturalWidth) return null;
const canvas = document.createElement("canvas");
canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
canvas.getContext("2d").drawImage(image, 0, 0);
return canvas.toDataURL();
"""
# Where the dot lies that is furthest to the right in a picture: the place of its pixel in the shown
# image, from the middle of it.
DOT = """
const image = arguments[0], canvas = document.createElement("canvas");
const wide = canvas.width = image.naturalWidth, high = canvas.height = image.naturalHeight;
const context = canvas.getContext("2d");
context.drawImage(image, 0, 0);
const pixels = context.getImageData(0, 0, wide, high).data;
for (let x = wide - 1; x >= 0; x--)
  for (let y = 0; y < high; y++) {
    const at = 4 * (y * wide + x);
    if (pixels[at] - pixels[at + 2] > 80) {
      const box = image.getBoundingClientRect();
      return [(x - 2 - wide / 2) * box.width / wide, (y - high / 2) * box.height / high];
    }
  }
return null;
"""
# What is wider than the room that it has: pictures with their frames, and what a cell shows.
WIDE = """
return Array.from(document.querySelectorAll("img.widget-image"))
  .filter(one => one.offsetParent)
  .flatMap(one => [one.parentElement, one.closest(".jp-OutputArea-output"),
                   one.closest(".jp-WindowedPanel-outer")])
  .filter(one => one.scrollWidth > one.clientWidth + 1
          || one.getBoundingClientRect().right > window.innerWidth)
  .map(one => `${one.className}: ${one.scrollWidth} in ${one.clientWidth}`);
"""
CUT = """
return Array.from(document.querySelectorAll(".widget-slider .noUi-target, .widget-play"))
  .filter(one => one.offsetParent && one.getBoundingClientRect().width < 60).length;
"""


def picture(browser: Any, index: int) -> Any:
    """A drawn picture of a notebook, waiting until there is one; fails where none comes."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        found = browser.find_elements("css selector", "img.widget-image")
        if len(found) > index and browser.execute_script(PIXELS, found[index]):
            return found[index]
        time.sleep(0.1)
    raise AssertionError(f"picture {index} was not drawn")


def changed(browser: Any, image: Any, before: str) -> str:
    """The pixels of a picture, once they are others; fails where they stay the same."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        found = browser.execute_script(PIXELS, image)
        if found is not None and found != before:
            return found
        time.sleep(0.02)
    raise AssertionError("the picture did not change")


def wait(said: Any, wanted: str) -> None:
    """Wait until a function of nothing returns a text that contains what is wanted."""
    until, found = time.monotonic() + SECONDS, ""
    while time.monotonic() < until:
        if wanted in (found := said()):
            return
        time.sleep(0.02)
    raise AssertionError(f"{wanted!r} did not come, but {found!r}")


def window(browser: Any, width: int, height: int = 1000) -> None:
    """Give the page exactly this size."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    time.sleep(0.3)  # until all has moved to its place


def screenshot(browser: Any, folder: Path, name: str, element: Any) -> None:
    """Scroll to an element, see that every view and control there has room, and save the window."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    time.sleep(0.2)
    assert browser.execute_script(CUT) == 0, f"{name}: a slider or a button has no room"
    assert browser.execute_script(WIDE) == [], f"{name}: a view is wider than its window"
    place = folder / f"{name}.png"
    assert browser.save_screenshot(str(place)) and place.stat().st_size > 10_000


def handle(browser: Any, name: str, at: int = 0) -> Any:
    path = (
        "//div[contains(@class, 'widget-slider')][label[normalize-space() = "
        f"'{name}']]//*[@role = 'slider']"
    )
    return browser.find_elements("xpath", path)[at]


def number(browser: Any, name: str) -> Any:
    """The box beside a slider."""
    path = f"//div[label[normalize-space() = '{name}']]/following-sibling::div//input"
    return browser.find_elements("xpath", path)[0]


def click(browser: Any, element: Any, x: float = 0, y: float = 0) -> None:
    """Click where a reader would: scrolled into view, by the mouse, from the middle of it."""
    from selenium.webdriver.common.action_chains import ActionChains

    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    chain = ActionChains(browser, duration=20)
    chain.move_to_element_with_offset(element, round(x), round(y)).click().perform()


def press(browser: Any, *keys: str) -> None:
    """Press keys, wherever the focus is."""
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def opened(browser: Any, lab: str, name: str, until: str) -> None:
    """Open a notebook and start its cells above one, with the list of files put away."""
    url, token = lab.split("?")
    window(browser, 1400)
    browser.get(f"{url}lab/tree/{name}.ipynb?reset&{token}")
    run(browser, name, until, "notebook:run-all-above")
    browser.execute_script(HIDE)


def run(browser: Any, name: str, marker: str, which: str) -> None:
    """Go to the cell of a notebook in which a text stands, and run those above or below."""
    assert browser.execute_async_script(RUN, f"{name}.ipynb", marker, which) == "ran"


def failed(browser: Any) -> list[str]:
    """What the notebook's cells say that have failed."""
    found = browser.find_elements(
        "css selector", "[data-mime-type='application/vnd.jupyter.error']"
    )
    return [one.text for one in found]


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("SIMNPO_LAB_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


SIZES = ((1400, 1000), (800, 600))


def test_the_sliders_of_the_law_move_its_picture(lab: str, browser: Any, shots: Path):
    from selenium.webdriver.common.keys import Keys

    opened(browser, lab, "01_objectives", "explain(npo")
    image = picture(browser, 0)
    for width, height in SIZES:
        window(browser, width, height)
        for name in ("β", "|y|, tokens", "reference"):
            before = browser.execute_script(PIXELS, image)
            slider, box = handle(browser, name), number(browser, name)
            click(browser, slider)
            value = float(box.get_attribute("value"))
            press(browser, Keys.ARROW_LEFT)
            wait(
                lambda one=box, old=value: str(float(one.get_attribute("value")) <= 0.95 * old),
                "True",
            )
            changed(browser, image, before)
        # Any number can be typed, and stands as it is.
        before, box = browser.execute_script(PIXELS, image), number(browser, "β")
        typed = f"0.{width}1"
        click(browser, box)
        box.send_keys(Keys.CONTROL, "a", Keys.NULL, typed, Keys.ENTER)
        changed(browser, image, before)
        assert float(box.get_attribute("value")) == float(typed)
        screenshot(browser, shots, f"law-{width}", image)
    assert not failed(browser)


def test_every_picture_of_the_notebook_on_weights_has_room(lab: str, browser: Any, shots: Path):
    opened(browser, lab, "02_gradient_weights", "corners_view(")
    run(browser, "02_gradient_weights", "corners_view(", "notebook:run-cell")
    images = [picture(browser, index) for index in range(3)]
    for width, height in SIZES:
        window(browser, width, height)
        for name, image in zip(("weights", "pace", "corners"), images, strict=True):
            screenshot(browser, shots, f"{name}-{width}", image)
    assert not failed(browser)


def test_a_training_is_cancelled_and_trained_and_its_steps_are_played(
    lab: str, browser: Any, shots: Path
):
    from selenium.webdriver.common.keys import Keys

    name = "03_markov_chains"
    opened(browser, lab, name, RESULT)
    training = picture(browser, 1)
    start, cancel = (
        browser.find_element("xpath", f"//button[normalize-space() = '{name}']")
        for name in ("train", "cancel")
    )
    said = browser.find_elements("css selector", ".widget-hbox .widget-html-content")[0]
    empty = browser.execute_script(PIXELS, training)
    click(browser, start)
    wait(lambda: said.text, "step")
    click(browser, cancel)
    wait(lambda: said.text, "stopped")
    click(browser, start)
    wait(lambda: said.text, "unlearning")
    wait(lambda: said.text, "done")
    changed(browser, training, empty)
    chains = picture(browser, 0)
    for width, height in SIZES:
        window(browser, width, height)
        screenshot(browser, shots, f"chains-{width}", chains)
        screenshot(browser, shots, f"training-{width}", training)
    window(browser, *SIZES[0])
    run(browser, name, RESULT, "notebook:run-all-below")
    image = picture(browser, 2)
    moment = handle(browser, "moment")

    def value() -> int:
        return int(float(moment.get_attribute("aria-valuetext")))

    for width, height in SIZES:
        window(browser, width, height)
        play, stop = browser.find_elements("css selector", ".widget-play button")[:2]
        before = browser.execute_script(PIXELS, image)
        click(browser, play)
        wait(lambda: str(value() >= 2), "True")
        click(browser, play)
        changed(browser, image, before)
        time.sleep(0.1)
        paused = value()
        time.sleep(0.6)
        assert value() == paused
        screenshot(browser, shots, f"player-{width}", image)
        click(browser, stop)
        wait(lambda: str(value() == 0), "True")
        click(browser, moment)
        press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
        wait(lambda: str(value() == 1), "True")
    assert not failed(browser)


# The rank that stands in the marked row.
MARKED = """
const found = document.querySelector("table.simnpo-answers tr[style] td");
return found ? `rank ${found.textContent}.` : "";
"""


def test_the_answers_are_weighed_and_chosen_by_clicks(lab: str, browser: Any, shots: Path):
    from selenium.webdriver.common.keys import Keys

    opened(browser, lab, "05_language_models", AFTER)
    image = picture(browser, 0)
    for width, height in SIZES:
        window(browser, width, height)
        before = browser.execute_script(PIXELS, image)
        # The dot furthest to the right needs most: it is the first of the table.
        click(browser, image, *browser.execute_script(DOT, image))
        wait(lambda: browser.execute_script(MARKED), "rank 1.")
        before = changed(browser, image, before)
        click(
            browser, browser.find_elements("css selector", "table.simnpo-answers td:last-child")[3]
        )
        wait(lambda: browser.execute_script(MARKED), "rank 4.")
        before = changed(browser, image, before)
        slider = handle(browser, "normalize")
        click(browser, slider)
        press(browser, Keys.END if width == SIZES[0][0] else Keys.HOME)
        changed(browser, image, before)
        screenshot(browser, shots, f"answers-{width}", image)
        screenshot(
            browser,
            shots,
            f"table-{width}",
            browser.find_element("css selector", "table.simnpo-answers"),
        )
    assert not failed(browser)
