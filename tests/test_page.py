"""The page in a real browser (headless Chromium): playing, scrubbing, hovering."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mme_targets.config import TargetConfig
from mme_targets.plan import ClipPlan
from mme_targets.video import Clip
from mme_targets.visualize import Tracks, save_html


def _found(*names: str) -> str:
    """The first of these programs that is installed."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    reason = f"none of {', '.join(names)} is installed"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI needs it")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    program = _found("chromium", "chromium-browser", "google-chrome")
    driver = _found("chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


HOG_PEAK = (2, 1, 4)  # step, channel and bin of the largest value of the known track


@pytest.fixture(scope="module")
def content() -> tuple[Clip, Tracks, torch.Tensor]:
    """12 x 8 tracks on 96 x 64 frames; row 3, column 5 of start 1 is the known one."""
    config = TargetConfig(frames=6, stride=4, length=6, size=64)
    plan = ClipPlan.build(config, 30)
    levels = torch.linspace(40, 200, len(plan.frames)).to(torch.uint8)
    frames = levels[:, None, None, None].expand(-1, 3, 64, 96).contiguous()
    clip = Clip(frames, tuple(i / 25 for i in plan.frames), plan.frames, 25.0, "<b>&clip.mp4")
    y, x = torch.meshgrid(torch.arange(4.0, 64, 8), torch.arange(4.0, 96, 8), indexing="ij")
    points = torch.stack([x, y], -1)[None, :, :, None].repeat(plan.starts, 1, 1, 7, 1)
    points[:, 3, 5, :, 0] += torch.arange(7) * 0.75
    points[:, 3, 5, :, 1] -= torch.arange(7) * 1.5
    points[:, 0, 0, :, 0] -= torch.arange(7) * 2
    visible = torch.ones(points.shape[:3], dtype=torch.bool)
    visible[:, 0, 0] = False
    hog = torch.full((*points.shape[:3], 6, 3, 9), 100.0)
    hog[1, 3, 5][HOG_PEAK] = 5000
    return clip, Tracks(points, visible, plan), hog


@pytest.fixture
def page(browser: Any, content: Any, tmp_path: Path) -> Any:
    path = tmp_path / "page.html"
    save_html(*content, path)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    wait(browser, "window.mme && mme.ready")
    yield browser
    lines = [line for line in browser.get_log("browser") if line["level"] != "INFO"]
    # Reading the canvas back is what these tests do, not the page.
    assert [line for line in lines if "readback" not in line["message"]] == []
    asked = [line["message"] for line in browser.get_log("performance")]
    sent = [line for line in asked if '"Network.requestWillBeSent"' in line]
    assert [line for line in sent if '"url":"http' in line] == []


def wait(browser: Any, condition: str, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not browser.execute_script(f"return !!({condition})"):
        assert time.monotonic() < end, condition
        time.sleep(0.05)


def run(browser: Any, expression: str) -> Any:
    return browser.execute_script(f"return {expression}")


def move(browser: Any, track: tuple[int, int, int], step: int, click: bool = False) -> None:
    """Put the pointer on a point of a track."""
    from selenium.webdriver.common.action_chains import ActionChains

    start, row, column = track
    x, y = run(browser, f"mme.screen({(start * 8 + row) * 12 + column}, {step})")
    actions = ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    if click:
        actions.w3c_actions.pointer_action.click()
    actions.perform()


def press(browser: Any, *keys: str, shift: bool = False) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    actions = ActionChains(browser)
    if shift:
        actions.key_down(Keys.SHIFT)
    actions.send_keys(*keys)
    if shift:
        actions.key_up(Keys.SHIFT)
    actions.perform()


def text(browser: Any, name: str) -> str:
    return str(run(browser, f"document.getElementById('{name}').textContent"))


def test_opens_where_the_first_tracks_are_whole(page: Any, content: Any) -> None:
    clip, tracks, _ = content
    assert run(page, "mme.frames") == len(clip.frames)
    assert run(page, "mme.frame") == tracks.frames_of(0)[-1]
    assert text(page, "name") == "<b>&clip.mp4"
    assert "frames 30 to 52 at 25 fps" in text(page, "about")
    assert run(page, "mme.hovered") is None
    assert run(page, "document.getElementById('track').hidden")


def test_play_advances_and_pauses(page: Any) -> None:
    from selenium.webdriver.common.by import By

    button = page.find_element(By.ID, "play")
    before = run(page, "mme.frame")
    assert button.get_attribute("aria-label") == "Play"
    button.click()
    assert button.get_attribute("aria-label") == "Pause"
    wait(page, f"mme.frame !== {before}")
    button.click()
    assert not run(page, "mme.playing")
    stopped = run(page, "mme.frame")
    time.sleep(0.3)
    assert run(page, "mme.frame") == stopped


def test_playing_goes_round(page: Any) -> None:
    run(page, "mme.seek(mme.frames - 1)")
    page.execute_script("mme.play()")
    wait(page, "mme.frame < 5")
    page.execute_script("mme.pause()")


def test_scrub_and_keys_set_the_frame(page: Any, content: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    clip = content[0]
    page.execute_script(
        "const s = document.getElementById('scrub'); s.value = 11;"
        "s.dispatchEvent(new Event('input', {bubbles: true}));"
    )
    assert run(page, "mme.frame") == 11
    assert text(page, "where") == f"frame {clip.indices[11]} · {clip.times[11]:.3f} s"
    assert f"frame {clip.indices[11]}, " in run(
        page, "document.getElementById('scrub').getAttribute('aria-valuetext')"
    )
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert run(page, "mme.frame") == 13
    press(page, Keys.ARROW_LEFT)
    assert run(page, "mme.frame") == 12
    press(page, Keys.HOME)
    assert run(page, "mme.frame") == 0
    press(page, Keys.ARROW_LEFT)
    assert run(page, "mme.frame") == 0
    press(page, Keys.END)
    assert run(page, "mme.frame") == len(clip.frames) - 1
    press(page, Keys.SPACE)
    assert run(page, "mme.playing")
    press(page, Keys.SPACE)
    assert not run(page, "mme.playing")


def test_the_frame_and_the_tracks_are_drawn(page: Any, content: Any) -> None:
    clip, tracks, _ = content
    colour = (
        "(([x, y]) => { const c = document.getElementById('stage'),"
        "b = c.getBoundingClientRect(), k = c.width / b.width;"
        "return [...c.getContext('2d').getImageData((x - b.left) * k, (y - b.top) * k, 1, 1)"
        ".data].slice(0, 3) })"
    )
    first = tracks.frames_of(1)[0]
    page.execute_script(f"mme.seek({first})")
    grown = f"{colour}(mme.screen({(1 * 8 + 3) * 12 + 5}, 4.0))"
    ground = round(float(clip.frames[first, 0, 0, 0]) * 0.82)
    assert run(page, grown) == pytest.approx([ground] * 3, abs=6)
    page.execute_script(f"mme.seek({first + 6})")
    red, green, blue = run(page, grown)
    assert red > green > blue  # warm, and light by now
    assert red > 220
    leaving = f"{colour}(mme.screen({1 * 96}, 1))"
    red, green, blue = run(page, leaving)
    assert blue > 200 > 150 > red
    page.execute_script("document.getElementById('invisible').click()")
    ground = round(float(clip.frames[first + 6, 0, 0, 0]) * 0.82)
    assert run(page, leaving) == pytest.approx([ground] * 3, abs=6)
    still = f"{colour}(mme.screen({1 * 96 + 50}, 0))"
    assert max(run(page, still)) - min(run(page, still)) > 40
    page.execute_script("document.getElementById('still').click()")
    assert run(page, still) == pytest.approx([ground] * 3, abs=6)


def test_hover_shows_the_numbers_of_the_track(page: Any, content: Any) -> None:
    _, tracks, _ = content
    page.execute_script(f"mme.seek({tracks.frames_of(1)[-1]})")
    move(page, (1, 3, 5), 6)
    assert run(page, "mme.hovered") == {"index": 137, "start": 1, "row": 3, "column": 5}
    assert text(page, "title") == "Track in row 3, column 5"
    assert text(page, "seed") == "(44.00, 28.00) px"
    assert text(page, "span") == "38 to 44, start 2 of 3"
    assert text(page, "moves") == "(4.50, −9.00) px, along 10.06 px"
    assert text(page, "seen").startswith("visible")
    rows = run(
        page,
        "[...document.querySelectorAll('#steps tbody tr')].map("
        "r => [r.cells[0].textContent, ...[...r.cells].slice(1).map(c => c.textContent)])",
    )
    table = {row[0]: row[1:] for row in rows}
    assert table["Δx"] == ["0.75"] * 6
    assert table["Δy"] == ["−1.50"] * 6
    assert table["px"] == ["1.68"] * 6
    assert len(table["HOG"]) == len(table["R G B"]) == 6
    heads = run(
        page, "[...document.querySelectorAll('#steps thead th')].map(c => c.lastChild.data)"
    )
    assert heads == ["38", "39", "40", "41", "42", "43"]
    # The largest value of the heat strip is where it was put.
    step, channel, bin_ = HOG_PEAK
    pixel = (
        "((step, x, y) => { const row = [...document.querySelectorAll('#steps tbody tr')]"
        ".find(r => r.cells[0].textContent === 'R G B');"
        "return [...row.cells[step + 1].firstChild.getContext('2d')"
        ".getImageData(x, y, 1, 1).data].slice(0, 3) })"
    )
    middle = (round((channel + 0.5) * 48), round((bin_ + 0.5) * 16))
    assert run(page, f"{pixel}({step}, {middle[0]}, {middle[1]})") == [46, 152, 72]
    other = run(page, f"{pixel}({step - 1}, {middle[0]}, {middle[1]})")
    assert min(other) > 200 or max(other) < 80  # all but the ground, light or dark
    move(page, (1, 0, 0), 0)
    assert run(page, "mme.hovered.index") == 96
    assert text(page, "seen").startswith("invisible")


def test_click_pins_and_keys_walk(page: Any, content: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page.execute_script(f"mme.seek({content[1].frames_of(1)[-1]})")
    move(page, (1, 3, 5), 3, click=True)
    assert run(page, "mme.pinned")
    move(page, (1, 6, 9), 0)
    assert run(page, "mme.hovered.index") == 137
    press(page, Keys.ARROW_RIGHT, shift=True)
    assert run(page, "[mme.hovered.row, mme.hovered.column]") == [3, 6]
    press(page, Keys.ARROW_DOWN, shift=True)
    assert run(page, "[mme.hovered.row, mme.hovered.column]") == [4, 6]
    press(page, Keys.ESCAPE)
    assert not run(page, "mme.pinned")
    assert run(page, "[mme.hovered.row, mme.hovered.column]") == [6, 9]  # under the pointer
    page.find_element(By.ID, "name").click()
    assert run(page, "mme.hovered") is None


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_fits_the_window(page: Any, content: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 760, "deviceScaleFactor": 2, "mobile": False},
    )
    try:
        page.execute_script("mme.select(1, 3, 5)")
        wait(page, f"innerWidth === {width}")
        assert run(page, "document.documentElement.scrollWidth") <= width
        wait(page, "document.getElementById('stage').width >= 2 * 300")  # as sharp as the screen
        assert run(page, "document.getElementById('play').getBoundingClientRect().bottom") < 760
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_steps_or_hog(browser: Any, tmp_path: Path) -> None:
    plan = ClipPlan.build(TargetConfig(frames=2, length=0, size=32))
    frames = torch.zeros(len(plan.frames), 3, 32, 32, dtype=torch.uint8)
    clip = Clip(frames, tuple(i / 25 for i in plan.frames), plan.frames, 25.0, "a.mp4")
    points = torch.full((1, 4, 4, 1, 2), 8.0)
    tracks = Tracks(points, torch.ones(1, 4, 4, dtype=torch.bool), plan)
    for number, hog in enumerate((torch.rand(1, 4, 4, 1, 3, 9), None)):
        save_html(clip, tracks, hog, tmp_path / f"{number}.html")
        browser.get((tmp_path / f"{number}.html").as_uri())
        wait(browser, "window.mme && mme.ready")
        browser.execute_script("mme.select(0, 1, 2)")
        assert text(browser, "moves") == "(0.00, 0.00) px, along 0.00 px"
        assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
