"""
How long visitors of the app wait, in headless Chromium: for the first picture, and for the preview behind a slider.

    python benchmarks/app.py        # needs chromium, and the extra [app] with playwright

The model is nano, with four steps. A wait is from the click or the slider's event until the browser has the new picture.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from typing import Any

from playwright.sync_api import sync_playwright

from facesnap_diffusers.app.server import nano_studio, serve


PREVIEW, PICTURE = "#preview img", "#result img.fs-picture"

#: Does something on the page, then waits for another picture at a place; gives the milliseconds in between.
WAIT = """async ([place, action]) => {
    const before = document.querySelector(place)?.src, since = performance.now();
    eval(action);
    while ((document.querySelector(place)?.src ?? before) === before) await new Promise(requestAnimationFrame);
    return performance.now() - since;
}"""
MOVE = """(() => {
    const slider = document.querySelector('#yaw-1 input[type=range]');
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(slider, %d);
    slider.dispatchEvent(new Event('input', { bubbles: true }));
})()"""


def measure(page: Any, moves: int) -> tuple[float, list[float]]:
    """Seconds to the first picture, and milliseconds to the preview of each move of a slider."""
    page.click("#photos-1 .fs-samples button >> nth=0")
    page.wait_for_selector(PREVIEW)
    first = page.evaluate(WAIT, [PICTURE, "document.querySelector('#generate').click()"])
    return first / 1000, [page.evaluate(WAIT, [PREVIEW, MOVE % (-30 + 60 * (i % 2) + i)]) for i in range(moves)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    args = parser.parse_args()
    app = serve(nano_studio(), wait=False)
    print("| width | first picture | preview: median, greatest |\n|---|---:|---:|")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(app.local_url)
            first, previews = measure(page, args.moves)
            median, greatest = statistics.median(previews), max(previews)
            print(f"| {width} px | {first:.1f} s | {median:.0f} ms, {greatest:.0f} ms |", flush=True)
            page.close()
        browser.close()
    app.close()


if __name__ == "__main__":
    main()
