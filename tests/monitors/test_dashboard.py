"""The dashboard in a real TensorBoard and a real browser, for a real run."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from processes import outcome_of

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here; .ci/run installs it where it can"),
]
RUN = "CartPole-v1/dqn+redo/seed0"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--window-size=1600,3000",
    "--virtual-time-budget=30000",
]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a TensorBoard on a short run."""
    folder = tmp_path_factory.mktemp("runs")
    line = ["train", "--env", "CartPole-v1", "--steps", "900", "--log-every", "100"]
    line += ["--agent.learning-starts", "100", "--agent.update-every", "10", "--threads", "1"]
    line += ["--evaluate-episodes", "3", "--evaluate-every", "300", "--interventions", "redo(tau=0.1, every=150)"]
    line += ["--monitors", "units(every=20)", "norms(every=20)", "activity(every=20, draw=4)"]
    assert outcome_of(*line, "--run", str(folder / RUN))[0] == 0
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
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
    """The content of a tab after its scripts have run."""
    assert BROWSER is not None
    line = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"{address}/#{tab}"]
    return subprocess.run(line, capture_output=True, text=True, timeout=180).stdout


def test_the_curves_are_on_the_page(dashboard: str, tmp_path: Path) -> None:
    content = page(dashboard, "timeseries", tmp_path / "profile")
    shown = [RUN, "charts/episodic_return", "charts/episodic_length", "charts/SPS"]
    missing = [text for text in shown if text not in content]
    assert not missing, f"{missing} not on the page"


def test_the_overview_and_the_table_of_hyperparameters_are_served(dashboard: str) -> None:
    """These two tabs hide their content in shadow roots, so the data of the server are checked."""
    layout = request(dashboard, "custom_scalars/layout")
    assert layout["category"][0]["title"] == "Overview"
    wanted = {"allowedStatuses": STATUSES, "colParams": [], "startIndex": 0, "sliceSize": 10}
    sessions = request(dashboard, "hparams/session_groups", wanted)
    (group,) = sessions["sessionGroups"]
    assert group["hparams"]["agent"] == "dqn" and group["hparams"]["env"] == "CartPole-v1"
    assert group["sessions"][0]["name"] == RUN
    assert group["sessions"][0]["status"] == "STATUS_SUCCESS"


def test_every_chart_of_the_page_has_lines_and_firings(dashboard: str) -> None:
    pages = {page["title"]: page["chart"] for page in request(dashboard, "custom_scalars/layout")["category"]}
    assert list(pages) == ["Overview", "Plasticity"]
    titles = [chart["title"] for chart in pages["Plasticity"]]
    assert titles[:4] == ["firings: units", "firings: mean change of values", "dormant units", "dead units"]
    assert {"norm of weights", "update to weight"} <= set(titles)
    for chart in pages["Plasticity"]:
        pattern = "|".join(f"({tag})" for tag in chart["multiline"]["tag"])  # the request of the page
        answer = request(dashboard, f"custom_scalars/scalars?{urllib.parse.urlencode({'tag': pattern, 'run': RUN})}")
        series = answer["tag_to_events"]
        lines = {tag for tag, points in series.items() if tag.startswith(("plasticity/", "firings/")) and points}
        assert answer["regex_valid"] and lines, chart["title"]
        if not chart["title"].startswith("firings"):
            (marker,) = [tag for tag in series if tag.startswith("markers/")]
            values = [value for _, _, value in series[marker]]
            assert min(values) == 0 < max(values) and [step for _, step, _ in series[marker]] == sorted(
                step for _, step, _ in series[marker]
            )


def test_the_band_of_the_evaluation_has_its_three_lines(dashboard: str) -> None:
    overview = request(dashboard, "custom_scalars/layout")["category"][0]["chart"]
    (chart,) = [chart for chart in overview if "margin" in chart]
    (band,) = chart["margin"]["series"]
    steps = []
    for tag in (band["value"], band["lower"], band["upper"]):
        answer = request(dashboard, f"scalars/scalars?{urllib.parse.urlencode({'tag': tag, 'run': RUN})}")
        steps.append([step for _, step, _ in answer])
    assert len(steps[0]) == 3 and steps[0] == steps[1] == steps[2]


def test_pictures_of_units_are_served(dashboard: str) -> None:
    assert request(dashboard, "images/tags")[RUN].keys() == {"activity/critic"}
    query = {"tag": "activity/critic", "run": RUN, "sample": 0}
    drawn = request(dashboard, f"images/images?{urllib.parse.urlencode(query)}")
    assert len(drawn) >= 2
    address = f"{dashboard}/data/plugin/images/individualImage?{drawn[-1]['query']}"
    assert urllib.request.urlopen(address, timeout=30).read().startswith(b"\x89PNG")


def test_the_text_describes_the_run(dashboard: str) -> None:
    assert set(request(dashboard, "text/tags")[RUN]) == {"run/config", "run/summary"}
    (shown,) = request(dashboard, f"text/text?{urllib.parse.urlencode({'tag': 'run/summary', 'run': RUN})}")
    for text in ("dqn in CartPole-v1, seed 0", "redo(every=150, tau=0.1)", "Reinitialise dormant units", "activity"):
        assert text in shown["text"], text


@pytest.fixture(scope="module")
def screenshots() -> ModuleType:
    file = Path(__file__).resolve().parents[2] / "studies" / "screenshots.py"
    spec = importlib.util.spec_from_file_location("screenshots_study", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_charts_and_pictures_are_drawn(dashboard: str, screenshots: ModuleType, tmp_path: Path) -> None:
    """In the browser the two tabs show curves in every chart, and a picture that it can read."""
    with screenshots.browser(tmp_path / "profile") as tab:
        shots = dict(screenshots.photographs(tab, dashboard, ["plasticity"], 1500, 0.6))
        drawn = tab.value("""named('tf-custom-scalar-multi-line-chart-card').filter(seen).map(card =>
            Object.values(card._nameToDataSeries).filter(series => series.getData().length > 0).length)""")
        titles = tab.value("named('tf-custom-scalar-multi-line-chart-card').filter(seen).map(card => card.title)")
        assert len(drawn) >= 15 and min(drawn) >= 1, dict(zip(titles, drawn, strict=True))
        shots |= dict(screenshots.photographs(tab, dashboard, ["images"], 1500, 0.6))
        size = tab.value("named('img').filter(seen).map(img => [img.naturalWidth, img.naturalHeight])")
        assert any(width > 500 and height > 200 for width, height in size), size
    for name, png in shots.items():
        width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))
        assert png.startswith(b"\x89PNG") and width == 1500 and height >= 600, name


STATUSES = ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"]


def request(address: str, plugin: str, body: Any = None) -> Any:
    """The response of a plugin of the dashboard."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{address}/data/plugin/{plugin}", data, {"Content-Type": "application/json"} if data else {}
    )
    return json.loads(urllib.request.urlopen(request, timeout=30).read())
