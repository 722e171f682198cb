"""Checkpoints are complete or absent after kills, truncation, flipped bits, deleted files and full disks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.agents import checkpoint
from pliant.agents.checkpoint import (
    MANIFEST,
    SAVED,
    Checkpoint,
    CheckpointDamaged,
    Checkpoints,
    DiskFull,
    FolderUnusable,
    NewerSchema,
    NoGoodCheckpoint,
    RunLock,
    RunLocked,
    Saved,
    SaveFailed,
    branch,
    has_saved,
)


def content(name: str, version: int, size: int = 3000) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(version * 1000 + len(name))
    frames = torch.randint(4, (size // 20, 4, 5), dtype=torch.uint8, generator=generator)
    return {"frames": frames, "reward": torch.rand(size // 20, generator=generator), "none": frames[:0]}


class Store:
    """A replay of three chunks: the first changes at every step, the second at every other step, the third never.

    `salt` makes it another run: the same versions, other content.
    """

    def __init__(self, step: int, salt: int = 0, size: int = 3000) -> None:
        self.versions = {"a": step, "bb": step // 2, "ccc.0": 0}
        self.salt = 1_000_000 * salt
        self.size = size
        self.written: list[str] = []
        self.loaded: dict[str, dict[str, Tensor]] = {}

    def chunks(self) -> list[tuple[str, int]]:
        return list(self.versions.items())

    def chunk(self, name: str) -> Mapping[str, Tensor]:
        self.written.append(name)
        return content(name, self.versions[name] + self.salt, self.size)

    def load_chunk(self, name: str, content: dict[str, Tensor]) -> None:
        self.loaded[name] = content


def state(step: int) -> dict[str, dict[str, Any]]:
    generator = torch.Generator().manual_seed(step)
    weights = torch.rand(30, 20, generator=generator)
    agent = {"weights": OrderedDict(w=weights, half=weights.half()), "step": step, "generator": generator.get_state()}
    return {"agent": agent, "log": {"seen": [1, 2.5, "x", None, (True, step)], "empty": torch.zeros(0)}}


def save(checkpoints: Checkpoints, step: int, salt: int = 0) -> tuple[Saved, Store]:
    store = Store(step, salt)
    return checkpoints.save(step, state(step), store), store


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def assert_holds(saved: Checkpoint | None, step: int, salt: int = 0) -> None:
    """The checkpoint is that of `step`, to the last bit."""
    assert saved is not None and saved.step == step
    assert same({part: saved.load(part) for part in saved.parts}, state(step))
    store = Store(step, salt)
    saved.restore(store)
    assert same(store.loaded, {name: content(name, version + store.salt) for name, version in store.chunks()})


def steps(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoints"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def name(step: int) -> str:
    return f"step_{step:012d}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that saved at steps 1, 2, 3 and 4 and keeps three."""
    folder = tmp_path / "run"
    checkpoints = Checkpoints(folder)
    for step in range(1, 5):
        save(checkpoints, step)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync: it matters only in a power cut, which no test makes. Written data survive a kill without it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# Saving and loading


def test_every_kept_checkpoint_loads_as_it_was_saved(run: Path) -> None:
    assert_holds(Checkpoints(run).newest_good(), 4)
    for step in (2, 3, 4):
        assert_holds(Checkpoints.open(run / "checkpoints" / name(step), verify=None), step)


def test_without_a_checkpoint_there_is_nothing_to_resume_or_open(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "no").newest_good() is None
    assert Checkpoints(tmp_path / "no").resume() is None
    assert not (tmp_path / "no").exists()
    with pytest.raises(FileNotFoundError, match="holds no checkpoints"):
        Checkpoints.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        Checkpoints.open(tmp_path / "checkpoints" / name(3))
    with pytest.raises(ValueError, match="keep must be at least 1, not 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_save_writes_only_the_chunks_that_changed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    before: dict[str, bytes] = {}
    for step, expected in ((2, ["a", "bb", "ccc.0"]), (3, ["a"]), (4, ["a", "bb"]), (4, [])):
        saved, store = save(checkpoints, step)
        assert store.written == expected
        after = files(tmp_path)
        # Exactly the new files and the files of this step's folder were written, and counted.
        new = [len(data) for file, data in after.items() if file not in before or name(step) in file]
        assert saved.bytes == sum(new) and saved.path == tmp_path / "checkpoints" / name(step)
        before = after


def test_a_resumed_run_writes_only_the_chunks_that_changed(run: Path) -> None:
    checkpoints = Checkpoints(run)
    assert_holds(checkpoints.resume(), 4)
    _, store = save(checkpoints, 5)
    assert store.written == ["a"]
    assert_holds(checkpoints.newest_good(), 5)


def test_a_known_chunk_whose_file_is_gone_is_written_again(run: Path) -> None:
    checkpoints = Checkpoints(run)
    checkpoints.resume()
    (run / "replay" / "ccc.0.0.pt").unlink()
    os.truncate(run / "replay" / "bb.2.pt", 10)
    _, store = save(checkpoints, 5)
    assert store.written == ["a", "bb", "ccc.0"]
    assert_holds(checkpoints.newest_good(), 5)


@pytest.mark.parametrize("keep", [1, 3])
def test_old_checkpoints_are_deleted_with_their_chunks(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(1, 8):
        save(checkpoints, step)
        kept = range(max(1, step - keep + 1), step + 1)
        assert steps(tmp_path) == [name(s) for s in kept]
        chunks = {f"{n}.{v}.pt" for s in kept for n, v in Store(s).chunks()}
        assert set(os.listdir(tmp_path / "replay")) == chunks


def test_all_files_are_synced_before_the_checkpoint_gets_its_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(run)
    checkpoints.resume()
    events: list[tuple[str, str]] = []
    rename = os.replace

    def sync(descriptor: int) -> None:
        events.append(("sync", os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), run)))

    def replace(source: Path, target: Path) -> None:
        events.append(("rename", os.path.relpath(target, run)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    save(checkpoints, 6)
    staging, final = f"checkpoints/{name(6)}.tmp", f"checkpoints/{name(6)}"
    chunks = [(operation, f"replay/{file}") for file in ("a.6.pt", "bb.3.pt") for operation in ("sync", "rename")]
    chunks = [(operation, file + ".tmp" if operation == "sync" else file) for operation, file in chunks]
    parts = [("sync", f"{staging}/{file}") for file in ("agent.pt", "log.pt", MANIFEST)]
    assert events == [
        *chunks,
        ("sync", "replay"),
        *parts,
        ("sync", staging),
        ("rename", final),
        ("sync", "checkpoints"),
    ]


def test_a_run_without_replay_is_saved_and_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state(3))
    newest = checkpoints.newest_good()
    assert newest is not None and newest.parts == ("agent", "log") and same(newest.load("agent"), state(3)["agent"])


def test_the_manifest_names_the_versions_that_wrote_it(run: Path) -> None:
    manifest = json.loads((run / "checkpoints" / name(4) / MANIFEST).read_text())
    assert (manifest["schema"], manifest["step"], manifest["torch"]) == (1, 4, torch.__version__)
    assert manifest["pliant"] != "unknown" and manifest["created"].endswith("+00:00")
    data = (run / "replay" / "a.4.pt").read_bytes()
    chunk = {"name": "a", "version": 4, "file": "a.4.pt", "size": len(data)}
    assert manifest["chunks"][0] == {**chunk, "sha256": hashlib.sha256(data).hexdigest()}


def test_frames_are_compressed_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "BLOCK", 1000)
    monkeypatch.setattr(sys.modules[__name__], "content", lambda *_: {"frames": torch.arange(40_000).byte() // 64})
    save(Checkpoints(tmp_path), 1)
    assert (tmp_path / "replay" / "a.1.pt").stat().st_size < 30_000
    store = Store(1)
    Checkpoints.open(tmp_path).restore(store)
    assert torch.equal(store.loaded["a"]["frames"], torch.arange(40_000).byte() // 64)


def test_a_slice_is_saved_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    stacked = torch.rand(100, 1000, requires_grad=True)
    checkpoints = Checkpoints(tmp_path)
    saved = checkpoints.save(1, {"agent": {"one": stacked[3], "transposed": stacked[:5, :5].T}})
    assert saved.bytes < 10_000
    loaded = Checkpoints.open(tmp_path).load("agent")
    assert torch.equal(loaded["one"], stacked[3]) and not loaded["one"].requires_grad
    assert torch.equal(loaded["transposed"], stacked[:5, :5].T)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, {2}]}, r"agent\['x'\]\['a'\]\[1\], of type builtins.set"),
        (torch.zeros(2).numpy(), r"agent\['x'\], of type numpy.ndarray"),
        (torch.zeros(2).numpy()[0], r"agent\['x'\], of type numpy.float32"),
        ({(1, 2): 3}, r"agent\['x'\]: the key \(1, 2\) is of type tuple"),
        (torch.Size([2]), r"agent\['x'\], of type torch.Size"),
    ],
)
def test_values_that_cannot_be_loaded_safely_are_not_saved(run: Path, value: Any, place: str) -> None:
    checkpoints = Checkpoints(run)
    checkpoints.resume()
    before = files(run)
    with pytest.raises(TypeError, match=place):
        checkpoints.save(9, {"agent": {"x": value}}, Store(9))
    assert files(run) == before


@pytest.mark.parametrize("bad", ["../evil", "", ".hidden", "a/b", "x.tmp"])
def test_names_that_are_not_file_names_are_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ValueError, match="is not a valid file name"):
        Checkpoints(tmp_path).save(1, {bad: {}})


# Reading a part


def test_an_agent_is_loaded_without_its_replay(run: Path) -> None:
    shutil.rmtree(run / "replay")
    (run / "checkpoints" / name(4) / "log.pt").unlink()
    newest = Checkpoints.open(run)
    assert newest.step == 4 and same(newest.load("agent"), state(4)["agent"])
    with pytest.raises(CheckpointDamaged, match=r"log\.pt is missing"):
        newest.load("log")
    with pytest.raises(CheckpointDamaged, match=r"a\.4\.pt is missing"):
        newest.restore(Store(4))
    with pytest.raises(KeyError, match="no part 'critic'; it has agent, log"):
        newest.load("critic")


def test_the_newest_undamaged_agent_is_opened(run: Path) -> None:
    os.truncate(run / "checkpoints" / name(4) / "agent.pt", 100)
    reports: list[str] = []
    assert Checkpoints.open(run, report=reports.append).step == 3
    assert len(reports) == 1 and "agent.pt has 100 bytes instead of" in reports[0]
    with pytest.raises(CheckpointDamaged, match=r"agent\.pt has 100 bytes"):
        Checkpoints.open(run / "checkpoints" / name(4))
    with pytest.raises(NoGoodCheckpoint, match="has no part 'critic'"):
        Checkpoints.open(run, verify=("critic",), report=reports.append)


def test_reading_changes_nothing(run: Path) -> None:
    (run / "checkpoints" / (name(5) + ".tmp")).mkdir()
    (run / "replay" / "stray.1.pt").write_bytes(b"x")
    os.truncate(run / "checkpoints" / name(4) / "agent.pt", 100)
    before = files(run)
    Checkpoints.open(run, report=lambda _: None)
    Checkpoints(run).newest_good(report=lambda _: None)
    assert files(run) == before and name(5) + ".tmp" in steps(run)


# Damage


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(where: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(where * (len(data) - 2))] ^= 1
        path.write_bytes(data)

    damage.__name__ = f"flip_{where}"
    return damage


def delete(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [truncate, empty, delete, a_folder, *(flip(i / 10) for i in range(11))]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("file", ["checkpoints/{}/agent.pt", "checkpoints/{}/log.pt", "checkpoints/{}/" + MANIFEST])
def test_damage_is_reported_and_the_previous_checkpoint_is_resumed(
    run: Path, file: str, damage: Callable[[Path], None]
) -> None:
    damaged = run / file.format(name(4))
    damage(damaged)
    reports: list[str] = []
    checkpoints = Checkpoints(run)
    resumed = checkpoints.resume(reports.append)
    assert_holds(resumed, 3)
    assert len(reports) == 1 and str(damaged) in reports[0]
    assert resumed is not None and len(resumed.damaged) == 1 and str(damaged) in resumed.damaged[0]
    # The run continues past the step whose checkpoint was damaged.
    for step in (4, 5, 6, 7):
        save(checkpoints, step)
        assert_holds(Checkpoints(run).newest_good(report=reports.append), step)
    assert len(reports) == 1 and steps(run) == [name(s) for s in (5, 6, 7)]


@pytest.mark.parametrize("damage", DAMAGES[:5], ids=lambda d: d.__name__)
def test_a_damaged_chunk_invalidates_the_checkpoints_that_use_it(run: Path, damage: Callable[[Path], None]) -> None:
    damage(run / "replay" / "a.4.pt")
    reports: list[str] = []
    assert_holds(Checkpoints(run).newest_good(report=reports.append), 3)
    assert len(reports) == 1 and "a.4.pt" in reports[0]
    damage(run / "replay" / "ccc.0.0.pt")  # all checkpoints use it
    with pytest.raises(NoGoodCheckpoint) as raised:
        Checkpoints(run).resume(reports.append)
    message = str(raised.value)
    assert "none of the 3 checkpoints" in message and message.count("ccc.0.0.pt") == 2 and "a.4.pt" in message
    assert "start over in another folder" in message
    assert Checkpoints.open(run, report=reports.append).step == 4  # the agents are undamaged


def test_a_damaged_checkpoint_is_set_aside_and_deleted_in_its_turn(run: Path) -> None:
    flip(0.5)(run / "checkpoints" / name(4) / "agent.pt")
    checkpoints = Checkpoints(run, keep=2)
    checkpoints.resume(lambda _: None)
    assert steps(run) == [name(2), name(3), name(4) + ".damaged"]
    assert "a.4.pt" not in os.listdir(run / "replay")
    save(checkpoints, 4)
    assert steps(run) == [name(3), name(4), name(4) + ".damaged"]
    save(checkpoints, 5)
    save(checkpoints, 6)
    assert steps(run) == [name(5), name(6)]


def reseal(path: Path, **changes: Any) -> None:
    """Rewrite a manifest with a correct hash of itself."""
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    path.write_bytes(checkpoint._sealed({**manifest, **changes}))


def test_a_newer_schema_is_refused_as_newer_and_not_as_damage(run: Path) -> None:
    reseal(run / "checkpoints" / name(4) / MANIFEST, schema=2, pliant="9.1")
    for read in (Checkpoints(run).newest_good, Checkpoints(run).resume, lambda: Checkpoints.open(run)):
        with pytest.raises(NewerSchema, match=r"written by pliant 9\.1 \(schema 2\).*upgrade pliant"):
            read()


def test_a_manifest_of_another_step_counts_as_damage(run: Path) -> None:
    reseal(run / "checkpoints" / name(4) / MANIFEST, step=3)
    reports: list[str] = []
    assert_holds(Checkpoints(run).newest_good(report=reports.append), 3)
    assert "contains the manifest of step 3" in reports[0]


GOOD = {"size": 1, "sha256": "0" * 64}
CHUNK = {"name": "a", "version": 4, "file": "a.4.pt", **GOOD}


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../../../victim.txt": GOOD}},
        {"files": {"/etc/hostname.pt": GOOD}},
        {"files": {"../agent.pt": GOOD}},
        {"files": {"manifest.json": GOOD}},
        {"files": {"agent.pt": {"size": -1, "sha256": "0" * 64}}},
        {"files": {"agent.pt": {"size": True, "sha256": "0" * 64}}},
        {"files": {"agent.pt": {"size": 1, "sha256": "0" * 63 + "g"}}},
        {"files": {"agent.pt": {"size": 1}}},
        {"files": {"agent.pt": None}},
        {"files": ["agent.pt"]},
        {"files": None},
        {"chunks": {"a": CHUNK}},
        {"chunks": [CHUNK | {"file": "../../../victim.txt"}]},
        {"chunks": [CHUNK | {"file": "a/b.pt"}]},
        {"chunks": [CHUNK | {"file": "a.4.pt\n"}]},
        {"chunks": [CHUNK | {"file": 3}]},
        {"chunks": [CHUNK | {"name": None}]},
        {"chunks": [CHUNK | {"sha256": None}]},
        {"chunks": ["a.4.pt"]},
        {"schema": None},
        {"schema": True},
        {"step": "4"},
    ],
)
def test_a_manifest_with_invalid_entries_counts_as_damage(run: Path, changes: dict[str, Any]) -> None:
    """The hash is correct, so the manifest was written on purpose. Even so no name may point outside the folder."""
    manifest = run / "checkpoints" / name(4) / MANIFEST
    reseal(manifest, **changes)
    reports: list[str] = []
    assert_holds(Checkpoints(run).newest_good(report=reports.append), 3)
    assert len(reports) == 1 and str(manifest) in reports[0]
    for read in (lambda: Checkpoints.open(manifest.parent, verify=()), lambda: Checkpoints.open(manifest.parent)):
        with pytest.raises(CheckpointDamaged, match=re.escape(str(manifest))):
            read()
    before = files(run)
    checkpoints = Checkpoints(run)
    assert_holds(checkpoints.resume(reports.append), 3)  # sets the damaged checkpoint aside and deletes unused files
    assert {path for path in before if "step_" not in path} >= {path for path in files(run) if "step_" not in path}
    save(checkpoints, 4)


def test_a_very_deeply_nested_manifest_counts_as_damage(run: Path) -> None:
    (run / "checkpoints" / name(4) / MANIFEST).write_text("[" * 100_000)
    reports: list[str] = []
    assert_holds(Checkpoints(run).newest_good(report=reports.append), 3)
    assert MANIFEST in reports[0]


def test_a_branch_links_no_file_from_outside_the_run(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    entry = {"size": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    newest = run / "checkpoints" / name(4)
    manifest = json.loads((newest / MANIFEST).read_text())
    path = os.path.relpath(victim, newest)
    reseal(newest / MANIFEST, files={**manifest["files"], path: entry})
    arm = tmp_path / "deeper" / "arm"
    with pytest.raises(CheckpointDamaged, match="victim"):
        branch(Checkpoints.open(newest, verify=None), arm)
    assert not arm.parent.exists() and victim.stat().st_nlink == 1


def replace_file(run: Path, file: str, data: bytes) -> None:
    """Replace the content of a file, with a manifest that has the matching hash."""
    manifest = run / "checkpoints" / name(4) / MANIFEST
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    content = json.loads(manifest.read_text())
    if file in content["files"]:
        (manifest.parent / file).write_bytes(data)
        reseal(manifest, files={**content["files"], file: entry})
    else:
        (run / "replay" / file).write_bytes(data)
        reseal(manifest, chunks=[{**c, **entry} if c["file"] == file else c for c in content["chunks"]])


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("stored", "why"), [(b"not a pickle", "cannot be loaded"), (Evil(), "cannot be loaded"), ([1], "not a dict")]
)
def test_files_that_hold_no_state_are_refused(run: Path, tmp_path: Path, stored: Any, why: str) -> None:
    if not isinstance(stored, bytes):
        torch.save(stored, tmp_path / "x")
        stored = (tmp_path / "x").read_bytes()
    replace_file(run, "agent.pt", stored)
    newest = Checkpoints.open(run)
    with pytest.raises(CheckpointDamaged, match=rf"agent\.pt.* {why}"):
        newest.load("agent")


@pytest.mark.parametrize(
    "stored",
    [
        {"frames": {"shape": [2, 3], "blocks": [torch.zeros(9, dtype=torch.uint8)]}},
        {"frames": {"shape": [2, 3], "blocks": []}},
        {"frames": {"shape": [2, 3]}},
        {"frames": 3},
        {"frames": {"shape": [0], "blocks": [torch.tensor([120, 1, 99, 4, 0, 0, 2, 0, 2], dtype=torch.uint8)]}},
    ],
)
def test_invalid_replay_chunks_are_refused(run: Path, tmp_path: Path, stored: Any) -> None:
    torch.save(stored, tmp_path / "x")
    replace_file(run, "a.4.pt", (tmp_path / "x").read_bytes())
    with pytest.raises(CheckpointDamaged, match=r"a\.4\.pt is not a replay chunk"):
        Checkpoints.open(run).restore(Store(4))


# Continuing in a folder


def test_a_folder_with_checkpoints_is_not_written_to_without_resume_or_clear(run: Path) -> None:
    before = files(run)
    with pytest.raises(RuntimeError, match=r"call resume\(\) or clear\(\) first"):
        save(Checkpoints(run), 5)
    assert files(run) == before
    checkpoints = Checkpoints(run)
    checkpoints.clear()
    assert list(run.iterdir()) == []
    # Versions of another run: the same names of chunk files, other content.
    save(checkpoints, 4, salt=1)
    assert_holds(Checkpoints(run).newest_good(), 4, salt=1)


def test_chunks_of_a_killed_save_are_never_reused(run: Path) -> None:
    replay = run / "replay"
    shutil.copy(replay / "a.4.pt", replay / "a.5.pt")  # the save was killed after this file and before its checkpoint
    (replay / "bb.3.pt.tmp").write_bytes(b"x")
    checkpoints = Checkpoints(run)
    checkpoints.resume()
    assert not {"a.5.pt", "bb.3.pt.tmp"} & set(os.listdir(replay))
    shutil.copy(replay / "a.4.pt", replay / "a.5.pt")  # not even a file that appears later
    save(checkpoints, 5)
    assert_holds(checkpoints.newest_good(), 5)

    fresh = run.parent / "fresh"  # nor a file of a killed first save
    shutil.copytree(replay, fresh / "replay")
    save(Checkpoints(fresh), 5, salt=1)
    assert_holds(Checkpoints(fresh).newest_good(), 5, salt=1)


def test_saving_a_step_again_replaces_its_checkpoint(run: Path) -> None:
    checkpoints = Checkpoints(run)
    checkpoints.resume()
    save(checkpoints, 4)
    assert steps(run) == [name(2), name(3), name(4)]
    assert_holds(Checkpoints(run).newest_good(), 4)


def test_leftovers_are_removed_by_the_next_save(run: Path) -> None:
    for step in (1, 5):
        shutil.copytree(run / "checkpoints" / name(4), run / "checkpoints" / (name(step) + ".tmp"))
    (run / "replay" / "a.5.pt.tmp").write_bytes(b"x")
    checkpoints = Checkpoints(run)
    assert_holds(checkpoints.resume(), 4)
    save(checkpoints, 5)
    assert steps(run) == [name(3), name(4), name(5)]
    assert not [file for file in os.listdir(run / "replay") if file.endswith(".tmp")]


# Kills. A separate process forks a child for every k; the child is killed at its k-th disk operation (a write is cut
# halfway).

KILLS = """
    import json, os, random, shutil, signal, sys, time, warnings
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    warnings.simplefilter("ignore", DeprecationWarning)  # fork
    import torch
    torch.set_num_threads(1)
    from pliant.agents.checkpoint import Checkpoints
    from test_checkpoint import Store, content, files, assert_holds, name, same, save, state, steps

    base = Path(sys.argv[2])
    os.fsync = lambda descriptor: None
    OPERATIONS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "ftruncate")

    def arm(k):
        counted = [0]
        def wrap(operation):
            real = getattr(os, operation)
            def call(*args, **kwargs):
                counted[0] += 1
                if counted[0] == k:
                    if operation == "write":
                        real(args[0], bytes(args[1])[: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)
            setattr(os, operation, call)
        for operation in OPERATIONS:
            wrap(operation)

    def killed_at(k, work):
        child = os.fork()
        if child == 0:
            try:
                arm(k)
                work()
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
        return os.WIFSIGNALED(status)

    def every_kill(template, work, good):
        k = 0
        while True:
            k += 1
            folder = base / "kill"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(template, folder)
            more = killed_at(k, lambda: work(folder))
            good(folder, more)
            if not more:
                return k - 1
"""


def in_a_process(script: str, *arguments: object) -> str:
    code = textwrap.dedent(KILLS) + textwrap.dedent(script)
    command = [sys.executable, "-c", code, str(Path(__file__).parent), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_kill_at_any_moment_of_a_save_leaves_a_complete_checkpoint(run: Path, tmp_path: Path) -> None:
    out = in_a_process(
        """
        def work(folder):
            checkpoints = Checkpoints(folder)
            checkpoints.resume()
            save(checkpoints, 6)

        seen = set()
        def good(folder, killed):
            newest = Checkpoints(folder).newest_good(report=lambda text: sys.exit(text))
            assert newest.step == 6 or killed
            seen.add(newest.step)
            assert_holds(newest, newest.step)
            # The run continues: other content with the versions of the killed attempt.
            checkpoints = Checkpoints(folder)
            step = checkpoints.resume().step
            save(checkpoints, step + 2, salt=1)
            assert steps(folder) == [name(s) for s in ((3, 4, 6) if step == 4 else (4, 6, 8))], steps(folder)
            newest = Checkpoints(folder).newest_good(report=lambda text: sys.exit(text))
            assert same(newest.load("agent"), state(step + 2)["agent"])
            store = Store(step + 2)
            newest.restore(store)
            assert same(store.loaded["a"], content("a", step + 2 + 1_000_000))
            assert same(store.loaded["ccc.0"], content("ccc.0", 0))
            manifests = [json.loads((p / "manifest.json").read_text()) for p in (folder / "checkpoints").iterdir()]
            named = {chunk["file"] for manifest in manifests for chunk in manifest["chunks"]}
            assert set(os.listdir(folder / "replay")) == named

        print(every_kill(Path(sys.argv[3]), work, good), sorted(seen))
        """,
        tmp_path,
        run,
    )
    kills, seen = out.split(maxsplit=1)
    assert int(kills) > 30 and seen.strip() == "[4, 6]"


def test_a_kill_at_any_moment_of_saving_a_step_again_leaves_that_step(run: Path, tmp_path: Path) -> None:
    out = in_a_process(
        """
        def work(folder):
            checkpoints = Checkpoints(folder)
            checkpoints.resume()
            save(checkpoints, 4)

        def good(folder, killed):
            assert_holds(Checkpoints(folder).newest_good(report=lambda text: sys.exit(text)), 4)
            checkpoints = Checkpoints(folder)
            assert_holds(checkpoints.resume(), 4)
            save(checkpoints, 4)
            assert steps(folder) == [name(2), name(3), name(4)], steps(folder)
            assert_holds(Checkpoints(folder).newest_good(report=lambda text: sys.exit(text)), 4)

        print(every_kill(Path(sys.argv[3]), work, good))
        """,
        tmp_path,
        run,
    )
    assert int(out) > 20


def test_a_kill_at_any_moment_of_a_first_save_a_resume_or_a_clear_is_harmless(run: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(run, tmp_path / "damaged")
    flip(0.5)(damaged / "checkpoints" / name(4) / "agent.pt")
    out = in_a_process(
        """
        quiet = lambda text: None

        def first(folder):
            save(Checkpoints(folder), 4)

        def first_good(folder, killed):
            newest = Checkpoints(folder).resume(report=lambda text: sys.exit(text))
            assert newest is not None or killed
            if newest is not None:
                assert_holds(newest, 4)

        def resume_good(folder, killed):
            checkpoints = Checkpoints(folder)
            assert_holds(checkpoints.resume(quiet), 3)
            save(checkpoints, 4)
            assert_holds(Checkpoints(folder).newest_good(report=lambda text: sys.exit(text)), 4)

        def clear_good(folder, killed):
            newest = Checkpoints(folder).newest_good(report=quiet)
            assert killed or newest is None
            if newest is not None:
                assert_holds(newest, 4)
            checkpoints = Checkpoints(folder)
            checkpoints.clear()
            assert os.listdir(folder) == []

        nothing = base / "nothing"
        nothing.mkdir()
        run, damaged = map(Path, sys.argv[3:])
        print(every_kill(nothing, first, first_good),
              every_kill(damaged, lambda folder: Checkpoints(folder).resume(quiet), resume_good),
              every_kill(run, lambda folder: Checkpoints(folder).clear(), clear_good))
        """,
        tmp_path,
        run,
        damaged,
    )
    kills = [int(k) for k in out.split()]
    assert kills[0] > 20 and kills[1] >= 2 and kills[2] > 10


def test_kills_at_random_moments_lose_no_completed_save(tmp_path: Path) -> None:
    out = in_a_process(
        """
        random.seed(0)
        folder, last, kills = base / "run", 0, 0
        while kills < 25:
            child = os.fork()
            if child == 0:
                checkpoints = Checkpoints(folder)
                checkpoints.resume()
                for step in range(last + 1, last + 10_000):
                    save(checkpoints, step)
                os._exit(1)
            time.sleep(random.uniform(0.0, 0.15))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            newest = Checkpoints(folder).newest_good(report=lambda text: sys.exit(text))
            if newest is not None:
                assert newest.step >= last
                last = newest.step
                assert_holds(newest, last)
        print(kills, last)
        """,
        tmp_path,
    )
    kills, last = map(int, out.split())
    assert kills == 25 and last > 5


# A full disk


FULL = """
    import errno, os, shutil, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import torch
    from pliant.agents.checkpoint import Checkpoints, DiskFull
    from pliant.agents.hooks import Clock
    from pliant.agents.log import Log, LogWriteFailed
    from test_checkpoint import Store, files, assert_holds, name, save, state, steps

    folder, limit = Path(sys.argv[2]), sys.argv[3]
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder)
    save(checkpoints, 1)
    before, free = files(folder), shutil.disk_usage(folder).free
    big = torch.rand(1_000_000)  # 4 MB

    class BigStore(Store):
        def chunk(self, name):
            return {"frames": big} if name == "ccc.0" else super().chunk(name)

    store = BigStore(2)
    store.versions["ccc.0"] = 1
    for parts, chunks, file in (
        ({**state(2), "more": {"big": big}}, Store(2), "more.pt"),
        (state(2), store, "ccc.0.1.pt.tmp"),
    ):
        try:
            checkpoints.save(2, parts, chunks)
        except DiskFull as error:
            assert error.errno == getattr(errno, limit), error.errno
            text = str(error)
            assert file in text and str(folder / "checkpoints" / name(1)) in text, text
            assert "bytes are free" in text and "Make room and resume" in text, text
            needed = int(text.split(" needs ")[1].split(" bytes")[0].replace(",", ""))
            assert 4_000_000 < needed < 4_100_000, text
            reported = int(text.split("; ")[1].split(" bytes are free")[0].replace(",", ""))
            if limit == "ENOSPC":
                assert reported == free, (reported, free)  # the failed save freed its space
        else:
            sys.exit("a save of 4 MB was possible")
        assert files(folder) == before, files(folder).keys() ^ before.keys()
        assert_holds(Checkpoints(folder).newest_good(), 1)
    save(checkpoints, 2)  # a save that fits succeeds
    assert_holds(Checkpoints(folder).newest_good(), 2)
    if limit == "ENOSPC":
        (folder / "filler").write_bytes(b"x" * (shutil.disk_usage(folder).free - 20_000))
        try:
            with Log(folder) as log:
                for i in range(1, 10_000):
                    log.scalars({"eval/episodic_return": float(i)}, Clock(i))
        except LogWriteFailed as error:
            assert error.errno == errno.ENOSPC and "0 bytes are free" in str(error), error
        else:
            sys.exit("the log did not notice")
        assert_holds(Checkpoints(folder).newest_good(), 2)
    print("survived")
"""


def fill(folder: Path, limit: str, prefix: Sequence[str] = (), before: str = "") -> str:
    code = textwrap.dedent(before) + textwrap.dedent(FULL)
    command = [*prefix, sys.executable, "-c", code, str(Path(__file__).parent), str(folder), limit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_full_file_system_leaves_the_last_checkpoint_intact(tmp_path: Path) -> None:
    """The file system has 2 MB and is mounted for this process only."""
    mount = f'mount -t tmpfs -o size=2m tmpfs {tmp_path} && exec "$@"'
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    prefix = ["unshare", "--mount", *own, "sh", "-c", mount, "sh"]
    try:
        possible = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("mounting is not permitted here; the limit on file sizes represents it")
    assert "survived" in fill(tmp_path / "run", "ENOSPC", prefix)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_file_sizes_leaves_the_last_checkpoint_intact(tmp_path: Path) -> None:
    before = """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    """
    assert "survived" in fill(tmp_path / "run", "EFBIG", before=before)


OPERATIONS = ("open", "write", "fsync", "replace", "rename", "mkdir")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("again", [False, True])
def test_any_disk_operation_may_fail_without_loss(
    run: Path, monkeypatch: pytest.MonkeyPatch, operation: str, again: bool
) -> None:
    """The k-th call of one kind fails, for every k: the last checkpoint stays, and the next save succeeds."""
    step = 4 if again else 6
    for k in range(1, 100):
        folder = run.parent / f"{operation}{k}"
        shutil.copytree(run, folder)
        checkpoints = Checkpoints(folder)
        checkpoints.resume()
        before, counted, real = files(folder), [0], getattr(os, operation)

        def call(*args: Any, counted: list[int] = counted, real: Any = real, k: int = k, **kwargs: Any) -> Any:
            counted[0] += 1
            if counted[0] == k:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, operation, call)
            try:
                save(checkpoints, step)
                failed = False
            except SaveFailed as error:
                failed = True
                assert error.errno == errno.EIO
                saved = "is saved, but older" in str(error)
                assert saved or f"{name(4)}, is unchanged" in str(error)
        if failed and not saved:
            assert files(folder) == before
        assert_holds(Checkpoints(folder).newest_good(), step if not failed or saved else 4)
        save(checkpoints, step)
        assert_holds(Checkpoints(folder).newest_good(), step)
        assert steps(folder)[-1] == name(step) and len(steps(folder)) == 3
        if counted[0] < k:
            return
    raise AssertionError("the save never succeeded")


def test_a_checkpoint_stays_valid_if_its_mark_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, opened = Checkpoints(tmp_path), os.open

    def fail(path: Any, *more: Any) -> int:
        if Path(path).name == SAVED:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(SaveFailed, match=rf"{name(1)} is saved, but .*{SAVED} is not") as failed:
            save(checkpoints, 1)
        assert failed.value.errno == errno.ENOSPC
    assert_holds(Checkpoints(tmp_path).newest_good(), 1)
    assert has_saved(tmp_path) is None
    save(checkpoints, 2)
    assert has_saved(tmp_path) == SAVED and Checkpoints(tmp_path)._marked


def test_an_interrupted_save_cleans_up_and_raises_the_interrupt(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(run)
    checkpoints.resume()
    before = files(run)

    class Interrupted(Store):
        def chunk(self, name: str) -> Mapping[str, Tensor]:
            if name == "bb":
                raise KeyboardInterrupt
            return super().chunk(name)

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(6, state(6), Interrupted(6))
    assert files(run) == before

    # An interrupt right after the checkpoint got its name does not damage it.
    replace = os.replace

    def interrupted(source: Any, target: Any) -> None:
        replace(source, target)
        if os.path.isdir(target):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 6)
    assert_holds(Checkpoints(run).newest_good(), 6)


def test_a_failed_save_deletes_no_chunk_that_a_checkpoint_uses(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(run)
    checkpoints.resume()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    # The checkpoint is in place when the removal of older ones fails; the next save still knows it.
    with monkeypatch.context() as patch, pytest.raises(SaveFailed, match=f"{name(6)} is saved, but older"):
        patch.setattr(shutil, "rmtree", full)
        save(checkpoints, 6)
    (run / "replay" / "bb.3.pt").unlink()  # lost, and written again by the failing save
    with monkeypatch.context() as patch, pytest.raises(SaveFailed, match=f"{name(6)}, is unchanged"):
        patch.setattr(os, "mkdir", full)
        save(checkpoints, 7)
    assert_holds(Checkpoints(run).newest_good(), 6)
    with monkeypatch.context() as patch, pytest.raises(SaveFailed):
        patch.setattr(os, "mkdir", full)
        save(checkpoints, 7)
    assert_holds(Checkpoints(run).newest_good(), 6)


def test_a_failed_first_save_reports_that_there_is_no_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull, match=r"the disk is full.*there is no earlier checkpoint"):
        save(Checkpoints(tmp_path), 1)
    assert files(tmp_path) == {}


# The lock


def test_only_one_process_at_a_time_holds_the_lock(tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from pliant.agents.checkpoint import RunLock
        lock = RunLock(Path(sys.argv[1]))
        print("held", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunLocked, match=rf"{re.escape(str(tmp_path))} is in use by pid {holder.pid} on .*choose"):
            RunLock(tmp_path)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    with RunLock(tmp_path) as lock:
        with pytest.raises(RunLocked, match=f"pid {os.getpid()}"):
            RunLock(tmp_path)
        lock.release()
        lock.release()
    with RunLock(tmp_path / "new"):
        assert f"pid {os.getpid()}" in (tmp_path / "new" / ".lock").read_text()


def test_an_undone_lock_leaves_no_file_and_no_process_holds_a_deleted_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.rglob("*"))
    lock = RunLock(tmp_path / "a" / "b")
    lock.undo()
    lock.undo()
    assert sorted(tmp_path.rglob("*")) == before
    # Existing content stays: a folder that is not empty, and the file of an earlier lock.
    with RunLock(tmp_path / "a"):
        pass
    again = RunLock(tmp_path / "a")
    again.undo()
    assert (tmp_path / "a" / ".lock").exists()
    lock = RunLock(tmp_path / "c" / "d")
    (tmp_path / "c" / "mine").write_text("x")
    lock.undo()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["mine"]
    # A process that opens the file just before its deletion and locks it just after must start again.
    first, locked = RunLock(tmp_path / "e"), fcntl.flock

    def slowly(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and first._descriptor is not None:
            first.undo()
            (tmp_path / "e").mkdir()
        locked(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slowly)
    second = RunLock(tmp_path / "e")
    monkeypatch.undo()
    with pytest.raises(RunLocked):
        RunLock(tmp_path / "e")
    second.release()


def test_a_folder_that_cannot_be_locked_is_reported_and_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FolderUnusable, match=r"cannot make the folder .*file: File exists") as raised:
        RunLock(tmp_path / "file")
    assert raised.value.errno == errno.EEXIST

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(FolderUnusable, match=r"cannot lock the folder .*new: No locks available"):
        RunLock(tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before
