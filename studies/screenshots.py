"""Pictures of the dashboard: what TensorBoard shows of some runs, as PNG files.

    python studies/screenshots.py runs/CartPole-v1/dqn/seed0 --out docs/figures
    python studies/screenshots.py healthy=runs/a/dqn/seed0 dying=runs/b/dqn/seed0 --pages plasticity images

Every folder gets a TensorBoard of its own, so that one run fills the charts, and a file `<name>-<page>.png` for each
page; the name is what stands before `=`, or the folder's last three parts. Pages: overview and plasticity (the two
categories of the custom-scalars tab), images, text, scalars. `--smoothing` is TensorBoard's own (its default is 0.6),
`--width` that of the window in pixels. The height is what the page needs.

Needs Chromium and nothing else: it is driven through its DevTools port, by the WebSocket client below.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGES = ("overview", "plasticity", "images", "text", "scalars")
TABS = {"overview": "custom_scalars", "plasticity": "custom_scalars", "scalars": "timeseries"}
PATIENCE = 120.0  # seconds that a page, or a server, may take

# TensorBoard hides what it draws in shadow roots; these functions walk through them.
WALK = """
function* walk(node) {
  yield node;
  if (node.shadowRoot) yield* walk(node.shadowRoot);
  for (const child of node.children || []) yield* walk(child);
}
const all = (test) => [...walk(document.body)].filter(test);
const named = (...names) => all(n => n.localName && names.includes(n.localName));
const box = (n) => n.getBoundingClientRect ? n.getBoundingClientRect() : {width: 0, height: 0};
const seen = (n) => box(n).width > 0 && box(n).height > 0;
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="a run's folder")
    parser.add_argument("--pages", nargs="+", choices=PAGES, default=["plasticity", "images"])
    parser.add_argument("--out", type=Path, default=Path("screenshots"), help="where the files go")
    parser.add_argument("--width", type=int, default=1500, help="pixels")
    parser.add_argument("--smoothing", type=float, default=0.6, help="of curves, between 0 and 1")
    arguments = parser.parse_args(argv)
    for given in arguments.runs:
        name, _, folder = given.rpartition("=")
        path = Path(folder).resolve()
        if not path.is_dir():
            sys.exit(f"error: there is no folder {path}")
        name = name or "-".join(path.parts[-3:])
        for page, png in screenshots(path, name, arguments.pages, arguments.width, arguments.smoothing):
            arguments.out.mkdir(parents=True, exist_ok=True)
            file = arguments.out / f"{name}-{page}.png"
            file.write_bytes(png)
            print(file, flush=True)
    return 0


def screenshots(
    run: Path, name: str, pages: list[str], width: int = 1500, smoothing: float = 0.6
) -> Iterator[tuple[str, bytes]]:
    """Each page as it stands once everything is drawn, with its name; the run appears under the name given."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        logs = Path(scratch) / "logs"
        logs.mkdir()
        (logs / name).symlink_to(run)
        with tensorboard(logs) as address, browser(Path(scratch) / "profile") as tab:
            yield from photographs(tab, address, pages, width, smoothing)


def photographs(tab: Tab, address: str, pages: list[str], width: int, smoothing: float) -> Iterator[tuple[str, bytes]]:
    """Each page of a TensorBoard that runs, with its name."""
    for page in pages:
        url = f"{address}/#{TABS.get(page, page)}&_smoothingWeight={smoothing:g}&smoothingWeight={smoothing:g}"
        yield page, photograph(tab, url, page, width)


def photograph(tab: Tab, url: str, page: str, width: int) -> bytes:
    """Open a page, wait until it is drawn, and take its picture in full height."""
    tab.size(width, 1200)
    tab.call("Page.navigate", url="about:blank")
    tab.call("Page.navigate", url=url)
    only = {"overview": "Overview", "plasticity": "Plasticity"}.get(page)
    if only is not None:
        tab.wait("named('tf-category-paginated-view').length > 0")
        # Fold every category but the one that is wanted.
        tab.run(f"""
            for (const view of named('tf-category-paginated-view'))
                if ((view.category.name === {json.dumps(only)}) !== view.opened) view._togglePane();
        """)
        # Open the list below every chart that names its lines.
        tab.run("""
            for (const card of named('tf-custom-scalar-multi-line-chart-card', 'tf-custom-scalar-margin-chart-card'))
                if (!card._matchesListOpened) card._toggleMatchesOpen();
        """)
    if page == "images":
        tab.wait("named('tf-image-loader').length > 0")
        # Pictures begin at thumbnail size; show them as large as they are.
        tab.run("for (const card of named('tf-image-loader')) card._isExpanded !== undefined || 0;")
        tab.run("named('tf-image-loader').forEach(card => { card.actualSize = true; });")
    for _ in range(2):  # charts begin to draw once they are in sight, and may grow while they do
        tab.steady(
            "all(seen).filter(n => ['canvas', 'path', 'img'].includes(n.localName)).length + ' ' + "
            "named('path').map(n => (n.getAttribute('d') || '').length).join()"
        )
        tab.size(width, int(tab.value(HEIGHT)))
    tab.steady("all(seen).length")
    return base64.b64decode(tab.call("Page.captureScreenshot", format="png")["data"])


# The bottom of the lowest thing that is no frame around everything, and a margin.
HEIGHT = """
Math.max(600, ...named('tf-category-paginated-view', 'tf-text-loader', 'card-view', 'tf-image-loader')
    .filter(seen).map(n => box(n).bottom)) + 30
"""


# ---------------------------------------------------------------------------------------------------------- servers


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def waited(what: str, ready: Callable[[], Any], alive: Callable[[], bool] = lambda: True) -> Any:
    """What `ready` returns once it is true; a SystemExit that names `what` if it never is."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and alive():
        try:
            if state := ready():
                return state
        except (OSError, ValueError):
            pass
        time.sleep(0.2)
    sys.exit(f"error: {what} did not come up")


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its children, which end with the block."""
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=quiet, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard on a folder of runs, every point of them kept."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--samples_per_plugin", "scalars=100000,images=100"]
    with started(command) as server:
        waited(
            "TensorBoard",
            lambda: b'"' in urllib.request.urlopen(f"{address}/data/runs", timeout=5).read(),
            lambda: server.poll() is None,
        )
        yield address


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A headless Chromium's only tab."""
    path = next((program for name in BROWSERS if (program := shutil.which(name))), None)
    if path is None:
        sys.exit("error: no Chromium here")
    command = [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={profile}", "about:blank"]
    with started(command) as process:
        port = waited(
            "Chromium", lambda: (profile / "DevToolsActivePort").read_text().split()[0], lambda: process.poll() is None
        )

        def first_page() -> str | None:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                pages = [tab for tab in json.load(answer) if tab["type"] == "page"]
            return pages[0]["webSocketDebuggerUrl"] if pages else None

        with Tab(waited("a tab of Chromium", first_page, lambda: process.poll() is None)) as tab:
            yield tab


class Tab:
    """A tab of a browser, through the DevTools protocol: JSON in WebSocket frames (RFC 6455)."""

    def __init__(self, url: str) -> None:
        host, _, path = url.removeprefix("ws://").partition("/")
        name, _, port = host.partition(":")
        self.socket = socket.create_connection((name, int(port)), timeout=PATIENCE)
        self.file = self.socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        asked = [f"GET /{path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
        asked += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        self.socket.sendall("\r\n".join(asked).encode())
        if b" 101 " not in self.file.readline():
            raise ConnectionError(f"{url} speaks no WebSocket")
        while self.file.readline().strip():
            pass
        self.number = 0

    def __enter__(self) -> Tab:
        self.call("Page.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def call(self, method: str, **params: Any) -> Any:
        """What the browser answers to a command."""
        self.number += 1
        self._send(json.dumps({"id": self.number, "method": method, "params": params}).encode())
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _send(self, data: bytes) -> None:
        # A client's frames are masked; a mask of zeros leaves them as they are.
        size = len(data)
        length = struct.pack("!B", 128 | size) if size < 126 else struct.pack("!BH", 128 | 126, size)
        if size >= 1 << 16:
            length = struct.pack("!BQ", 128 | 127, size)
        self.socket.sendall(b"\x81" + length + bytes(4) + data)

    def _message(self) -> bytes:
        data, final = b"", False
        while not final:
            first, second = self._read(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(self._read(2 if size == 126 else 8), "big")
            payload = self._read(size)
            if first & 15 < 8:  # not a ping, a pong or a close
                data, final = data + payload, bool(first & 128)
        return data

    def _read(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise ConnectionError("the browser closed the connection")
        return data

    def size(self, width: int, height: int) -> None:
        """Of the window, in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is, in which the functions of `WALK` may be used."""
        source = f"(() => {{ {WALK}; return ({expression}); }})()"
        answer = self.call("Runtime.evaluate", expression=source, returnByValue=True)
        if "exceptionDetails" in answer:
            raise ValueError(answer["exceptionDetails"]["exception"].get("description", expression))
        return answer["result"].get("value")

    def run(self, statements: str) -> None:
        """Statements of JavaScript."""
        self.value(f"(() => {{ {statements} }})()")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        waited(f"what was waited for ({expression})", lambda: self.value(expression))

    def steady(self, expression: str, seconds: float = 2.0) -> None:
        """Until an expression has not changed for some time."""
        deadline, since, last = time.monotonic() + PATIENCE, time.monotonic(), None
        while time.monotonic() < deadline and time.monotonic() - since < seconds:
            time.sleep(0.25)
            value = self.value(expression)
            if value != last:
                since, last = time.monotonic(), value


if __name__ == "__main__":
    sys.exit(main())
