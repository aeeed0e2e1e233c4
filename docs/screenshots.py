"""Takes the pictures in docs/images/: the report as a wide and as a narrow screen shows it, and the demo's terminal.

    .venv/bin/python docs/screenshots.py --workdir=runs/screenshots

The run is made there if it is not there yet, in minutes; the pictures take seconds, and need Chromium or Chrome.
"""

import argparse
import os
import pathlib
import pty
import re
import shutil
import sys

import rich.console
import rich.terminal_theme
import rich.text
from PIL import Image
from playwright import sync_api

IMAGES = pathlib.Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
COLUMNS = 116
RECORDING = "terminal.ansi"
REPORT_HEIGHT = 2600  # pixels of the page's top that are shown
COLORS = 256  # so few keep the files small


def record(workdir: pathlib.Path) -> None:
    """Runs the demo in a terminal of its own, and keeps in `workdir` what it wrote there."""
    os.environ |= {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "tfnas.cli", "run", "--config=configs/digits.py", f"--workdir={workdir}"]
    written = bytearray()

    def read(terminal: int) -> bytes:
        data = os.read(terminal, 65536)
        written.extend(data)
        return data

    status = os.waitstatus_to_exitcode(pty.spawn(command, read))
    if status:
        raise SystemExit(f"screenshots: '{' '.join(command)}' ended with {status}")
    (workdir / RECORDING).write_bytes(bytes(written))


def seen(recording: str) -> rich.text.Text:
    """Returns the final contents of the screen: the last state of lines that were rewritten."""
    lines = recording.replace("\r\n", "\n").split("\n")
    last = [re.sub(r"\x1b\[\?25[lh]", "", re.split(r"\r(?:\x1b\[2K)?", line)[-1]) for line in lines]
    # Styles continue across lines, so the lines are read together.
    return rich.text.Text.from_ansi("\n".join(last).strip("\n"))


def terminal_page(text: rich.text.Text) -> str:
    """The terminal's text as an HTML page."""
    console = rich.console.Console(width=COLUMNS, record=True, file=open(os.devnull, "w"))
    console.print(text, soft_wrap=True)
    return console.export_html(
        theme=rich.terminal_theme.MONOKAI,
        inline_styles=True,
        code_format="<body style='margin:0;background:{background};color:{foreground}'><pre style='margin:0;"
        "padding:16px;display:inline-block;font:13px/1.35 monospace'>{code}</pre></body>",
    )


def smaller(file: pathlib.Path) -> None:
    """Rewrites a PNG with few colors."""
    with Image.open(file) as picture:
        few = picture.convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the demo's run")
    workdir = parser.parse_args().workdir
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        raise SystemExit(f"screenshots: one of {', '.join(BROWSERS)} expected on PATH. Received: none")
    if not (workdir / RECORDING).exists():
        record(workdir)
    IMAGES.mkdir(exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for width in (1280, 400):
            page = browser.new_page(viewport={"width": width, "height": REPORT_HEIGHT})
            page.goto((workdir / "report.html").absolute().as_uri())
            page.screenshot(path=IMAGES / f"report_{width}.png")
        page = browser.new_page()
        page.set_content(terminal_page(seen((workdir / RECORDING).read_bytes().decode())))
        page.locator("pre").screenshot(path=IMAGES / "terminal.png")
    for file in sorted(IMAGES.glob("*.png")):
        smaller(file)
        print(f"{file.relative_to(IMAGES.parent.parent)}  {file.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
