"""Takes the pictures of `docs/images`; a chromium with its chromedriver must be there.

    python docs/screenshots.py URL     # of `rs-rlhf app`, started with two policies, a score model and --label
    python docs/screenshots.py PAGE…   # of pages that commands wrote (report.html, …), named by their folders

Wide and light, narrow and dark.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

OUT = Path(__file__).parent / "images"
MOST = 150_000  # bytes of a picture
SETTINGS = {"wide": (1200, "light"), "narrow": (420, "dark")}
TYPE = """const field = document.querySelector('#' + arguments[0] + ' textarea, #' + arguments[0] + ' input');
field.focus(); field.value = arguments[1]; field.dispatchEvent(new Event('input', { bubbles: true })); field.blur();"""
CAPTIONS = "six blue planes on an apron\nan airport near a road\na dense forest"


def browser() -> Any:
    """Starts a chromium without a window."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def until(page: Any, script: str) -> None:
    """Waits until a script is true."""
    for _ in range(600):
        if page.execute_script(f"return !!({script})"):
            return
        time.sleep(0.2)
    raise SystemExit(f"nothing after two minutes: {script}")


def tab(page: Any, name: str) -> None:
    """Opens a tab, which on a narrow page may be in the menu."""
    find = (
        f"[...document.querySelectorAll('button[role=tab]')].find(one => one.innerText.includes({json.dumps(name)}))"
    )
    until(page, find)
    page.execute_script(f"{find}.click()")
    time.sleep(1)


def ask(page: Any) -> None:
    """Asks both policies."""
    tab(page, "Ask")
    page.execute_script("document.querySelector('#ask').click()")
    until(page, "document.querySelector('#answers li')")


def best(page: Any) -> None:
    """Ranks answers."""
    tab(page, "Best of N")
    page.execute_script("document.querySelector('#best').click()")
    until(page, "document.querySelector('#ranking li')")


def score(page: Any) -> None:
    """Scores captions, and hides patches."""
    tab(page, "Score")
    page.execute_script(TYPE, "score_texts", CAPTIONS)
    time.sleep(1)
    page.execute_script("document.querySelector('#score').click()")
    until(page, "document.querySelector('#scores li')")
    page.execute_script("document.querySelector('#map').click()")
    until(page, "document.querySelector('#map_picture img')?.naturalWidth")


def label(page: Any) -> None:
    """Shows a pair, and chooses one."""
    tab(page, "Label")
    time.sleep(2)
    page.execute_script(TYPE, "annotator", "ann")
    until(page, "document.querySelector('#pair img')?.naturalWidth")
    page.execute_script("document.querySelector('#choose_left').click()")
    time.sleep(2)


def take(page: Any, url: str, name: str, show: Callable[[Any], None] | None = None, highest: int = 2600) -> None:
    """Takes a page in every setting, as high as it is but for `highest` pixels."""
    for setting, (width, scheme) in SETTINGS.items():
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for height in (900, None):  # as high as the page once it is there
            height = height or min(highest, page.execute_script("return document.documentElement.scrollHeight"))
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            if height == 900:
                page.get(url)
                until(page, "document.querySelector('h1')")
                if show is not None:
                    show(page)
        time.sleep(1)
        picture = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")
        path = OUT / f"{name}-{setting}.png"
        for colours in (256, 128):  # fewer would change the colours of charts
            picture.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
            if path.stat().st_size <= MOST:
                break
        print(path, path.stat().st_size)


def main(places: Sequence[str]) -> None:
    """Takes every picture in every setting."""
    page = browser()
    OUT.mkdir(exist_ok=True)
    for place in places:
        if "://" in place:
            for name, show in (("ask", ask), ("best-of-n", best), ("score", score), ("label", label)):
                take(page, place, f"app-{name}", show)
        else:
            path = Path(place).resolve()
            take(page, path.as_uri(), f"{path.parent.name}-{path.stem}", highest=1000)
    page.quit()


if __name__ == "__main__":
    main(sys.argv[1:])
