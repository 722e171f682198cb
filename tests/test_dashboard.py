"""The dashboard as a person sees it: a real run, a real TensorBoard, a real browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here; .ci/run installs it where it can"),
]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1600,3000",
    "--virtual-time-budget=30000",
]  # fmt: skip


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a TensorBoard on a short run."""
    folder = tmp_path_factory.mktemp("runs")
    line = [sys.executable, "-m", "pliant.scripts", "train", "--env", "CartPole-v1", "--steps", "900", "--log-every"]
    line += ["100", "--agent.learning-starts", "100", "--evaluate-episodes", "2", "--threads", "1"]
    run = ["--run", str(folder / "CartPole-v1" / "dqn" / "seed0")]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run([*line, *run], env=quiet, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    board = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    with subprocess.Popen(
        [*board, "--port", str(port)], env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                if b"seed0" in urllib.request.urlopen(f"{address}/data/runs", timeout=5).read():
                    break
            except OSError:
                pass
            assert server.poll() is None and time.monotonic() < deadline, "TensorBoard did not start"
            time.sleep(0.2)
        yield address
        server.terminate()


def page(address: str, tab: str, profile: Path) -> str:
    """What a tab holds once its scripts have run."""
    assert BROWSER is not None
    line = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"{address}/#{tab}"]
    return subprocess.run(line, capture_output=True, text=True, timeout=180).stdout


def test_the_curves_are_on_the_page(dashboard: str, tmp_path: Path) -> None:
    content = page(dashboard, "timeseries", tmp_path / "profile")
    shown = ["CartPole-v1/dqn/seed0", "charts/episodic_return", "charts/episodic_length", "charts/SPS"]
    missing = [text for text in shown if text not in content]
    assert not missing, f"{missing} not on the page"


def test_the_overview_and_the_table_of_hyperparameters_are_served(dashboard: str) -> None:
    """These two tabs hide their content in shadow roots; what they draw is what the server gives them."""
    layout = ask(dashboard, "custom_scalars/layout")
    assert layout["category"][0]["title"] == "Overview"
    wanted = {"allowedStatuses": STATUSES, "colParams": [], "startIndex": 0, "sliceSize": 10}
    sessions = ask(dashboard, "hparams/session_groups", wanted)
    (group,) = sessions["sessionGroups"]
    assert group["hparams"]["agent"] == "dqn" and group["hparams"]["env"] == "CartPole-v1"
    assert group["sessions"][0]["name"] == "CartPole-v1/dqn/seed0"
    assert group["sessions"][0]["status"] == "STATUS_SUCCESS"


STATUSES = ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"]


def ask(address: str, plugin: str, body: Any = None) -> Any:
    """What a plugin of the dashboard answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{address}/data/plugin/{plugin}", data, {"Content-Type": "application/json"} if data else {}
    )
    return json.loads(urllib.request.urlopen(request, timeout=30).read())
