"""Draws the dashboards of a running Prometheus as pages, for people without Grafana. Knows no metric.

python -m monitoring.plot FOLDER --prometheus http://127.0.0.1:9090 --last 3600

Pictures (--png) need Playwright, Pillow and a Chromium; the pages need nothing.
"""

import argparse
import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from monitoring.plot.page import WIDTH, Mark, page
from monitoring.plot.series import Prometheus, Series, Span

DASHBOARDS = Path(__file__).parents[1] / "grafana" / "dashboards"


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    span, prometheus = Span(asked.end - asked.last, asked.end), Prometheus(asked.prometheus)

    def ask(query: str, legend: str) -> list[Series]:
        return prometheus.series(query, legend, span)

    asked.folder.mkdir(parents=True, exist_ok=True)
    made = []
    try:
        for file in sorted(DASHBOARDS.glob("*.json")):
            made.append(asked.folder / f"dashboard-{file.stem}.html")
            made[-1].write_text(page(json.loads(file.read_text()), ask, span, asked.mark), encoding="utf-8")
    except OSError as fault:
        print(f"{asked.prometheus} gives no answer: {fault}", file=sys.stderr)
        return 1
    if asked.png:
        photograph(made)
    print(*made, sep="\n")
    return 0


def photograph(pages: Sequence[Path]) -> None:
    """A picture of each page, as wide as the page and as high as it needs, beside it."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        sheet = browser.new_page(viewport={"width": WIDTH, "height": 800})
        for made in pages:
            sheet.goto(made.resolve().as_uri())
            picture = Image.open(io.BytesIO(sheet.screenshot(full_page=True)))
            picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
                made.with_suffix(".png"), optimize=True
            )
        browser.close()


def mark(text: str) -> Mark:
    at, _, happened = text.partition("=")
    return Mark(float(at), happened)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m monitoring.plot", description="Draw the dashboards without Grafana.")
    made.add_argument("folder", type=Path, help="where the pages go")
    made.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    made.add_argument("--last", type=float, default=3600.0, metavar="SECONDS", help="how long (default: an hour)")
    made.add_argument("--end", type=float, default=time.time(), metavar="TIME", help="until when; seconds since 1970")
    made.add_argument(
        "--mark", type=mark, action="append", default=[], metavar="TIME=TEXT", help="what happened; may be repeated"
    )
    made.add_argument("--png", action="store_true", help="make a picture of each page too")
    return made


if __name__ == "__main__":
    sys.exit(main())
