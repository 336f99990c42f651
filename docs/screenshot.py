"""Make the picture of a report: `python docs/screenshot.py yupana-demo/report.html`.

Needs Chromium with its driver, and the extras `test` and `plot` (selenium, pillow). The page is
shown as on a desk, in light colours, and beside it as on a phone, in dark ones.
"""

import base64
import io
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

TARGET = Path(__file__).parent / "images" / "report.png"
VIEWS = ((1120, "light"), (390, "dark"))
HEIGHT = 1500  # pixels of each
EDGE = 24


def show(driver: Any, page: Path, width: int, scheme: str) -> Image.Image:
    """The top of a page."""
    size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver.get(page.resolve().as_uri())
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


def main(page: Path) -> None:
    """Put both views side by side."""
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        views = [show(driver, page, *view) for view in VIEWS]
    finally:
        driver.quit()
    width = sum(view.width for view in views) + EDGE
    both = Image.new("RGB", (width, HEIGHT), "white")
    both.paste(views[0], (0, 0))
    both.paste(views[1], (views[0].width + EDGE, 0))
    both.quantize(128, dither=Image.Dither.NONE).save(TARGET, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
