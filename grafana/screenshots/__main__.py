"""`make screenshots`: brings the scene up, lets it run, and draws each dashboard into docs/pictures.

    --minutes M      how long the guests work before the pictures are taken (15)
    --only UID       one dashboard instead of all; may be given several times
    --hold           then keep the scene until Enter, drawing again at each line
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from grafana.screenshots.happenings import arrange, operate
from grafana.screenshots.scene import SCRAPE_S, Scene

HERE = Path(__file__).parent
PICTURES = HERE.parent.parent / "docs" / "pictures"
OVERVIEW = "virtgauge-fleet"
OVERVIEW_HEIGHT = 1580
"""Its first three rows, and the upper half of the fourth."""
COLOURS = 192
"""A picture's palette: few enough for a small file, many enough for smooth edges of letters."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--hold", action="store_true")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder, Scene(Path(folder)) as scene:
        arrange(scene.hosts)
        print(f"the guests work for {chosen.minutes:g} minutes; Prometheus is {scene.prometheus.url('/')}", flush=True)
        operate(scene.control, chosen.minutes * 60, scene.mishaps)
        status = draw(scene.prometheus.url(""), chosen.minutes, chosen.only)
        while chosen.hold and sys.stdin.readline():
            operate(scene.control, 60)
            status = draw(scene.prometheus.url(""), chosen.minutes, chosen.only)
    return status


def draw(prometheus: str, minutes: float, only: list[str]) -> int:
    """The pictures of what `prometheus` has of the last minutes; returns the drawing program's exit status."""
    PICTURES.mkdir(exist_ok=True)
    done = subprocess.run(["node", "take.mjs", prometheus, str(PICTURES), f"{minutes:g}", str(SCRAPE_S), *only],
                          cwd=HERE, check=False)
    overview()
    for picture in PICTURES.glob("*.png"):
        shrink(picture)
    return done.returncode


def overview() -> None:
    """The README's picture: the upper part of a dashboard that was just drawn."""
    with Image.open(PICTURES / f"{OVERVIEW}.png") as image:
        if image.mode != "P":
            image.crop((0, 0, image.width, OVERVIEW_HEIGHT)).save(PICTURES / "overview.png")


def shrink(picture: Path) -> None:
    """The picture with a palette of its own; one that has a palette is left alone."""
    with Image.open(picture) as image:
        if image.mode != "P":
            image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
