"""The report of a large run: time to write it, and time until a browser shows it.

python -m benchmarks.report
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from ace.record import Record
from ace.report import write_report
from ace.run_store import RunStore

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1300,1000")
PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
SORT = """
const start = performance.now(), sort = document.querySelector("[name=sort]");
sort.value = "l1";
sort.dispatchEvent(new Event("change", { bubbles: true }));
document.body.offsetHeight;
return performance.now() - start;
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="images of the run")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = write_run(Path(folder) / "run", options.images, *options.size)
        first, again = write_seconds(store), write_seconds(store)
        page = store.folder / "report.html"
        print(f"{options.images} images of {options.size[0]}x{options.size[1]}")
        print(f"written in {first:.1f} s, again in {again:.1f} s, {page.stat().st_size / 1e6:.1f} MB of HTML")
        paint, sort = browse(page)
        print(f"first paint after {paint:.0f} ms, sorted in {sort:.0f} ms")


def write_run(folder: Path, count: int, width: int, height: int) -> RunStore:
    """A run of coloured gradients in which a patch changes."""
    store, random = RunStore.create(folder, {}, {"decision": {"class_names": ["cat", "dog"]}}), np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(height, width)
    with patch("os.fsync", lambda _: None):
        for index in range(count):
            colours = random.integers(0, 256, (3, 3))
            before = (x[..., None] * colours[0] + y[..., None] * colours[1]).clip(0, 255).astype(np.uint8)
            mask = np.zeros((height, width, 1), np.uint8)
            top, left = random.integers(0, (height // 2, width // 2))
            mask[top : top + height // 3, left : left + width // 3] = 255
            after = np.where(mask > 0, (before // 2 + colours[2] // 2).astype(np.uint8), before)
            p_after, l1, l2, linf = random.random(4).tolist()
            record = Record(
                id=f"image-{index:05d}", label=0, prediction=index % 2, target=1 - index % 2,
                p_before=0.01, p_attack=0.99, p_after=p_after, l1=l1, l2=l2, linf=linf, changed_area=1 / 9,
                iterations=25, unet_forwards=155, unet_backwards=150, seconds=1.0, seed=0,
                flipped=p_after > 0.5, status="flipped" if p_after > 0.5 else "not_flipped",
            )  # fmt: skip
            pictures = {"original": before, "pre_explanation": after, "counterfactual": after, "mask": mask}
            store.add(record, pictures)
    return store


def write_seconds(store: RunStore) -> float:
    start = time.perf_counter()
    write_report(store)
    return time.perf_counter() - start


def browse(page: Path) -> tuple[float, float]:
    """Milliseconds until Chromium paints the page, and those that it takes to sort it."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS:
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"))) as driver:
        driver.get(page.as_uri())
        paint = WebDriverWait(driver, 10).until(lambda driver: driver.execute_script(PAINT))
        return paint, driver.execute_script(SORT)


if __name__ == "__main__":
    main()
