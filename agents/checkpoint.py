"""Checkpoints of a run: written so that a kill at any moment, or a full disk, costs no more than the last interval.

    <run>/checkpoints/step_000000012345/<part>.pt     one file a part (agent, log, …), `torch.load(weights_only=True)`
    <run>/checkpoints/step_000000012345/manifest.json sizes and hashes of all files, replay chunks included
    <run>/replay/<chunk>.<version>.pt                 replay content, shared by the checkpoints that name it
    <run>/.lock                                       held by the process that runs in the folder

A checkpoint exists once its folder has its final name. Everything it names is durable by then: each file is written,
synced and, for chunks, renamed; then the manifest; then the folder is renamed. Whatever else lies about is the
leftover of a killed attempt. A chunk's content never changes under its name, so a save writes only chunks whose
version is new, and a replay of gigabytes costs its changed part.

A checkpoint is good if every file it names has the size and hash that it says. Reading takes the newest good one and
names each damaged one that it passed over.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import socket
import sys
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from .files import is_count, sync_folder

SCHEMA = 1
MANIFEST = "manifest.json"
BLOCK = 4 << 20  # bytes of frames that are compressed together
STEP = re.compile(r"step_(\d{12,})(\.old)?")
NAME = re.compile(r"\w[\w.-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")


class CheckpointDamaged(RuntimeError):
    """A checkpoint is not what its manifest says."""


class NoGoodCheckpoint(RuntimeError):
    """There are checkpoints, and none of them can be used."""


class NewerSchema(RuntimeError):
    """A checkpoint was written by a newer version of this package."""


class SaveFailed(OSError):
    """A checkpoint could not be written. Nothing that was there before has changed."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


class DiskFull(SaveFailed):
    """A checkpoint did not fit on the disk, or into the quota."""


class RunLocked(RuntimeError):
    """Another process runs in this folder."""


class Chunked(Protocol):
    """What is saved in chunks: content under a name, with a version that changes whenever the content does."""

    def chunks(self) -> Sequence[tuple[str, int]]: ...
    def chunk(self, name: str) -> Mapping[str, Tensor]: ...
    def load_chunk(self, name: str, content: dict[str, Tensor]) -> None: ...


class Saved(NamedTuple):
    """What a save wrote: where, how many bytes (of parts, new chunks and manifest), in how many seconds."""

    path: Path
    bytes: int
    seconds: float


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Found:
    """A checkpoint on disk whose files were verified (all of them, or those of the parts asked for)."""

    path: Path
    manifest: dict[str, Any]
    damaged: list[str] = field(default_factory=list)  # newer checkpoints that were passed over, and why

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(name.removesuffix(".pt") for name in self.manifest["files"])

    def load(self, part: str, map_location: str | torch.device = "cpu") -> dict[str, Any]:
        """The state that was saved as `part`. Raises KeyError for a part that is not there, CheckpointDamaged."""
        if part not in self.parts:
            raise KeyError(f"{self.path} has no part {part!r}; it has {', '.join(self.parts)}")
        entry = self.manifest["files"][f"{part}.pt"]
        state = _load(self.path / f"{part}.pt", entry, map_location)
        if not isinstance(state, dict):
            raise CheckpointDamaged(f"{self.path / part}.pt holds {type(state).__name__}, not a dict")
        return state

    def restore(self, replay: Chunked) -> None:
        """Gives `replay` the content of all chunks (its own `load_state_dict` comes first)."""
        for entry in self.manifest["chunks"]:
            path = _run_folder(self.path) / "replay" / entry["file"]
            try:
                content = _unpack(_load(path, entry, "cpu"))
            except (KeyError, TypeError, ValueError, zlib.error) as error:
                raise CheckpointDamaged(f"{path} is no replay chunk: {error!r}") from error
            replay.load_chunk(entry["name"], content)


class Checkpoints:
    """The checkpoints of the run in `folder`; the newest `keep` are kept.

    A folder that holds checkpoints is not written to before `resume` or `clear`: chunk versions of two different runs
    must not meet.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep at least one checkpoint, not {keep}")
        self.folder = Path(folder)
        self.keep = keep
        self._steps = self.folder / "checkpoints"
        self._chunks = self.folder / "replay"
        self._known: dict[str, dict[str, Any]] = {}  # chunk files that a checkpoint names: {"size", "sha256"}
        self._ready = not _listed(self.folder)

    # Writing

    def save(self, step: int, parts: Mapping[str, Mapping[str, Any]], chunks: Chunked | None = None) -> Saved:
        """Writes the checkpoint of `step`, then deletes what is older than the newest `keep`.

        `parts` are state dicts: nested dict, list and tuple of tensors, numbers, strings and None; TypeError names the
        place of anything else. Tensors are written from the CPU, and without the rest of the storage they view.
        Raises DiskFull or SaveFailed after removing what it had written.
        """
        if not self._ready:
            raise RuntimeError(f"{self.folder} holds the checkpoints of an earlier run: resume() it, or clear() it")
        start = time.perf_counter()
        final = self._steps / f"step_{step:012d}"
        staging, old = final.with_name(final.name + ".tmp"), final.with_name(final.name + ".old")
        for name in parts:
            _check_name(name)
        writing = _Writing(self.folder)
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "step": int(step),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "pliant": _version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "files": {},
            "chunks": [],
        }
        try:
            for folder in (self._steps, self._chunks):
                if not folder.is_dir():
                    folder.mkdir(parents=True)
                    sync_folder(self.folder)
            self._remove_leftovers()
            if chunks is not None:
                for name, version in chunks.chunks():
                    entry = self._save_chunk(writing, chunks, name, version)
                    manifest["chunks"].append({"name": name, "version": int(version), **entry})
            sync_folder(self._chunks)
            os.mkdir(staging)
            for name, state in parts.items():
                data = _serialised(_storable(state, name))
                manifest["files"][f"{name}.pt"] = writing.write(staging / f"{name}.pt", data)
            writing.write(staging / MANIFEST, _sealed(manifest))
            sync_folder(staging)
            if final.exists():  # the same step again: after a resume that was stopped before it did anything
                if old.exists():
                    _remove(old)
                os.rename(final, old)
            writing.committing = True
            os.replace(staging, final)
        except BaseException as error:
            self._undo(writing, staging, final, old)
            if isinstance(error, OSError):
                raise self._explained(error, writing) from error
            raise
        for entry in manifest["chunks"]:
            self._known[entry["file"]] = {"size": entry["size"], "sha256": entry["sha256"]}
        try:
            sync_folder(self._steps)
            self._prune()
        except OSError as error:
            raise SaveFailed(f"{final} is saved, but older files cannot be removed: {error}", error.errno) from error
        return Saved(final, writing.bytes, time.perf_counter() - start)

    def _save_chunk(self, writing: _Writing, chunks: Chunked, name: str, version: int) -> dict[str, Any]:
        _check_name(name)
        file = f"{name}.{version}.pt"
        path = self._chunks / file
        known = self._known.get(file)
        # Only a file that a checkpoint names is trusted: any other is the leftover of an attempt that was killed.
        if known is not None and path.exists() and path.stat().st_size == known["size"]:
            return {"file": file, **known}
        staging = path.with_name(file + ".tmp")
        entry = writing.write(staging, _serialised(_pack(chunks.chunk(name))))
        if known is None:
            writing.new.append(path)
        os.replace(staging, path)
        return {"file": file, **entry}

    def _undo(self, writing: _Writing, staging: Path, final: Path, old: Path) -> None:
        """Removes what a failed save wrote, so that a full disk gets its space back."""
        if writing.committing and final.exists() and not staging.exists():
            return  # an interrupt that arrived just after the checkpoint was in place
        if old.exists() and not final.exists():
            os.rename(old, final)
        if staging.exists():
            shutil.rmtree(staging)
        for path in [*writing.new, *self._chunks.glob("*.tmp")]:
            path.unlink(missing_ok=True)

    def _explained(self, error: OSError, writing: _Writing) -> SaveFailed:
        good = _listed(self.folder)
        kept = f"the last checkpoint, {good[0]}, is untouched" if good else "there is no earlier checkpoint"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(_existing(self.folder)).free
            limit = {errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is over the size limit"}
            return DiskFull(
                f"cannot save a checkpoint in {self.folder}: {limit.get(error.errno, 'the disk is full')}. Writing "
                f"{writing.file} needs {writing.needed:,} bytes with what came before it; {free:,} bytes are free; "
                f"{kept}. Make room and resume",
                error.errno,
            )
        return SaveFailed(f"cannot save a checkpoint in {self.folder}: {error}; {kept}", error.errno)

    def _remove_leftovers(self) -> None:
        """What killed saves and deletions left behind."""
        for path in self._steps.glob("*.tmp"):
            shutil.rmtree(path)
        for path in self._chunks.glob("*.tmp"):
            path.unlink()

    def _prune(self) -> None:
        kept: list[Path] = []
        steps: set[int] = set()
        for path in _listed(self.folder):
            # A `.old` twin of the same step has served its purpose: it covered the moment between two renames.
            if len(kept) < self.keep and _step(path) not in steps:
                kept.append(path)
                steps.add(_step(path))
            else:
                _remove(path)
        for path in self._steps.glob("step_*.damaged"):
            if kept and int(path.name[5:].partition(".")[0]) < _step(kept[-1]):
                _remove(path)
        self._collect(kept)

    def _collect(self, kept: Iterable[Path]) -> None:
        """Deletes chunk files that none of the checkpoints names."""
        named: dict[str, dict[str, Any]] = {}
        for path in kept:
            try:
                manifest = _manifest(path)
            except CheckpointDamaged:  # reading reports it; its chunks are of no use without it
                continue
            named |= {c["file"]: {"size": c["size"], "sha256": c["sha256"]} for c in manifest["chunks"]}
        if self._chunks.is_dir():
            for file in os.listdir(self._chunks):
                if file not in named:
                    os.unlink(self._chunks / file)
        self._known = named

    # Reading

    def newest_good(self, verify: Sequence[str] | None = None, report: Callable[[str], None] = _print) -> Found | None:
        """The newest checkpoint whose files are whole, or None where there are no checkpoints. Changes nothing.

        `verify`: the parts that are needed; None means all of them and the replay. `report` is called with a sentence
        for each damaged checkpoint that is passed over. Raises NoGoodCheckpoint, NewerSchema.
        """
        damaged: list[str] = []
        for path in _listed(self.folder):
            try:
                manifest = _verified(path, verify)
            except CheckpointDamaged as error:
                damaged.append(str(error))
                report(f"damaged checkpoint passed over: {error}")
            else:
                return Found(path, manifest, damaged)
        if damaged:
            reasons = "\n  ".join(damaged)
            raise NoGoodCheckpoint(
                f"none of the {len(damaged)} checkpoints in {self.folder} can be used:\n  {reasons}\n"
                "Put the files back from a copy, or start over in another folder"
            )
        return None

    def resume(self, report: Callable[[str], None] = _print) -> Found | None:
        """`newest_good`, and the folder made ready to go on from there.

        Newer, damaged checkpoints are set aside as `….damaged`, since the run will come to their steps again; chunk
        files that no other checkpoint names are deleted, since the run will come to their versions again.
        """
        found = self.newest_good(report=report)
        listed = _listed(self.folder)
        newer = listed[: listed.index(found.path)] if found is not None else []
        for path in newer:
            aside = path.with_name(path.name + ".damaged")
            if aside.exists():
                shutil.rmtree(aside)
            os.rename(path, aside)
        self._collect(listed[len(newer) :])
        self._ready = True
        return found

    def clear(self) -> None:
        """Deletes all checkpoints and the replay of an earlier run in this folder."""
        # Checkpoints before chunks, newest last: a kill on the way leaves good checkpoints or none.
        for path in reversed(_listed(self.folder)):
            _remove(path)
        for folder in (self._steps, self._chunks):
            if folder.is_dir():
                shutil.rmtree(folder)
        self._known = {}
        self._ready = True

    @staticmethod
    def open(path: Path, verify: Sequence[str] | None = ("agent",), report: Callable[[str], None] = _print) -> Found:
        """A checkpoint to read from: `path` is a run folder (its newest good one is taken) or a checkpoint's folder.

        Only the parts in `verify` are looked at, so an agent can be loaded without its replay.
        Raises FileNotFoundError where there is no checkpoint, CheckpointDamaged, NoGoodCheckpoint, NewerSchema.
        """
        path = Path(path)
        if STEP.fullmatch(path.name):
            if not path.is_dir():
                raise FileNotFoundError(f"there is no checkpoint {path}")
            return Found(path, _verified(path, verify))
        found = Checkpoints(path).newest_good(verify, report)
        if found is None:
            raise FileNotFoundError(f"{path} holds no checkpoints: give a run folder, or a folder step_… within one")
        return found


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a run's folder, whole or damaged, in order."""
    return sorted({_step(path) for path in _listed(folder)})


def branch(found: Found, folder: Path) -> Found:
    """A checkpoint as the first of another run, in a folder that has none; verified there.

    Files are linked where the disk allows it, since no content ever changes under its name, and copied elsewhere: a
    replay of gigabytes takes no room twice until one of the two runs writes on.

    Raises:
        CheckpointDamaged: It is not what its manifest says, or was removed meanwhile by the run that it is of.
        SaveFailed: It does not fit on the disk, say.
    """
    source = _run_folder(found.path)
    target = Path(folder) / "checkpoints" / found.path.name.removesuffix(".old")
    try:
        target.mkdir(parents=True)
        (Path(folder) / "replay").mkdir(exist_ok=True)
        for name in (MANIFEST, *found.manifest["files"]):
            _link(found.path / name, target / name)
        for entry in found.manifest["chunks"]:
            _link(source / "replay" / entry["file"], Path(folder) / "replay" / entry["file"])
    except FileNotFoundError as error:
        raise CheckpointDamaged(
            f"{error.filename} is gone: the run has removed this checkpoint while it was copied; stop the run, or "
            "give it more --keep-checkpoints"
        ) from error
    except OSError as error:
        raise SaveFailed(f"cannot copy {found.path} to {target}: {error}", error.errno) from error
    return Checkpoints.open(target, verify=None)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copyfile(source, target)


class RunLock:
    """The right to run in a folder, held by one process at a time; a context manager.

    The kernel releases it when the process ends, however it ends. RunLocked names the holder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / ".lock"
        self._descriptor: int | None = None
        self.acquire()

    def acquire(self) -> None:
        """Takes the lock, or raises RunLocked at once."""
        if self._descriptor is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise RunLocked(
                f"{self.path.parent} is in use by {holder}: wait for it, stop it, or choose another folder"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise OSError(error.errno, f"cannot lock the run folder: {error.strerror}", str(self.path)) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives the lock back; again is harmless. The file stays: deleting it would race with the next holder."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


# Files


class _Writing:
    """Writes the files of one save, durably, and remembers what a failure needs to tell and to undo."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0  # written in full
        self.needed = 0  # the same, with the file that is being written
        self.file = folder
        self.committing = False  # the next step gives the checkpoint its final name
        self.new: list[Path] = []  # chunk files that no checkpoint names yet

    def write(self, path: Path, data: memoryview | bytes) -> dict[str, Any]:
        """Size and hash of the file."""
        view = memoryview(data)
        size = len(view)
        self.file, self.needed = path, self.bytes + size
        digest = hashlib.sha256(view).hexdigest()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.bytes += size
        return {"size": size, "sha256": digest}


def _remove(path: Path) -> None:
    """Deletes a checkpoint; under another name first, so that a kill leaves no half of it that looks like a whole."""
    gone = path.with_name(path.name + ".tmp")
    if gone.exists():
        shutil.rmtree(gone)
    os.rename(path, gone)
    shutil.rmtree(gone)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _step(path: Path) -> int:
    match = STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _listed(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first; of the same step, the one in place before its `.old` twin."""
    steps = Path(folder) / "checkpoints"
    found = [path for path in steps.iterdir() if STEP.fullmatch(path.name)] if steps.is_dir() else []
    return sorted(found, key=lambda path: (-_step(path), path.name))


def _run_folder(checkpoint: Path) -> Path:
    return checkpoint.resolve().parent.parent


def _is_file_name(name: Any) -> bool:
    return _matches(NAME, name) and not name.endswith(".tmp")


def _check_name(name: str) -> None:
    if not _is_file_name(name):
        raise ValueError(f"{name!r} cannot name a file: letters, digits, '_', '-' and '.' can, a letter first")


def _version() -> str:
    try:
        return importlib.metadata.version("pliant")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# Manifest


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as JSON, with a hash of itself."""
    seal = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": seal}, indent=1) + "\n").encode()


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Its own hash tells a newer schema from a damaged file, so it comes first."""
    file = path / MANIFEST
    try:
        data = file.read_bytes()
        content = json.loads(data)
    except FileNotFoundError:
        raise CheckpointDamaged(f"{file} is missing") from None
    except OSError as error:
        raise CheckpointDamaged(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointDamaged(f"{file} is no JSON ({len(data)} bytes): {error}") from error
    except RecursionError as error:
        raise CheckpointDamaged(f"{file} is no manifest: it is nested too deeply") from error
    if not isinstance(content, dict) or data != _sealed({k: v for k, v in content.items() if k != "sha256"}):
        raise CheckpointDamaged(f"{file} does not have the hash that it says")
    if not is_count(content.get("schema")):
        raise CheckpointDamaged(f"{file} does not say its schema")
    if content["schema"] > SCHEMA:
        raise NewerSchema(
            f"{path} was written by pliant {content.get('pliant')} (schema {content['schema']}); this is pliant "
            f"{_version()}, which reads schemas up to {SCHEMA}: upgrade pliant"
        )
    _check_manifest(content, file)
    if content["step"] != _step(path):
        raise CheckpointDamaged(f"{path} holds the manifest of step {content['step']}")
    return content


def _check_manifest(content: Mapping[str, Any], file: Path) -> None:
    """Refuse a manifest that is not made as `save` makes it, although it has its hash (CheckpointDamaged).

    Whoever can write a manifest can write the hash, too. What it names is read, linked and deleted, so a name must
    not lead out of the folder.
    """

    def entry(value: Any, what: str) -> None:
        if not (isinstance(value, dict) and is_count(value.get("size")) and _matches(SHA256, value.get("sha256"))):
            raise CheckpointDamaged(f"{file} gives no size and sha256 of {what}")

    if not is_count(content.get("step")):
        raise CheckpointDamaged(f"{file} does not say its step")
    files, chunks = content.get("files"), content.get("chunks")
    if not isinstance(files, dict) or not isinstance(chunks, list):
        raise CheckpointDamaged(f"{file} does not list its files and chunks")
    for name, value in files.items():
        if not (_is_file_name(name) and name.endswith(".pt")):
            raise CheckpointDamaged(f"{file} names the file {name!r}, which is no name of a part")
        entry(value, name)
    for value in chunks:
        if not (isinstance(value, dict) and _is_file_name(value.get("file")) and _is_file_name(value.get("name"))):
            raise CheckpointDamaged(f"{file} names a chunk that is no file name: {_shortened(value)}")
        entry(value, value["file"])


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _shortened(value: Any) -> str:
    text = repr(value.get("file", value) if isinstance(value, dict) else value)
    return text if len(text) <= 100 else text[:99] + "…"


def _verified(path: Path, parts: Sequence[str] | None) -> dict[str, Any]:
    """The manifest, after a look at every byte of the parts asked for (None: and at the replay)."""
    manifest = _manifest(path)
    files: dict[str, Any] = manifest["files"]
    for part in files if parts is None else [f"{part}.pt" for part in parts]:
        if part not in files:
            raise CheckpointDamaged(f"{path} has no part {part.removesuffix('.pt')!r}; it has {', '.join(files)}")
        _read(path / part, files[part])
    for entry in manifest["chunks"] if parts is None else ():
        _read(_run_folder(path) / "replay" / entry["file"], entry)
    return manifest


def _read(path: Path, entry: Mapping[str, Any]) -> bytes:
    """The content of a file that a manifest names, if it is the one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointDamaged(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointDamaged(f"{path} cannot be read: {error.strerror}") from error
    if len(data) != entry["size"]:
        raise CheckpointDamaged(f"{path} holds {len(data):,} bytes instead of {entry['size']:,}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointDamaged(f"{path} does not have the hash that the manifest says")
    return data


# Content


def _serialised(content: Any) -> memoryview:
    # Through memory: an OSError inside torch's own writer comes out as an internal assertion without its cause.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def _load(path: Path, entry: Mapping[str, Any], map_location: str | torch.device) -> Any:
    data = _read(path, entry)
    try:
        return torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:  # whatever torch and pickle make of it, the file is not what we wrote
        raise CheckpointDamaged(f"{path} cannot be loaded: {error}") from error


def _storable(value: Any, place: str) -> Any:
    """A state as `torch.load(weights_only=True)` takes it, tensors on the CPU and without foreign storage."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (dict, OrderedDict):
        for key in value:
            if type(key) not in (bool, int, float, str):
                raise TypeError(f"cannot save {place}: the key {key!r} is of type {type(key).__name__}")
        return {key: _storable(item, f"{place}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_storable(item, f"{place}[{i}]") for i, item in enumerate(value))
    raise TypeError(
        f"cannot save {place}, of type {type(value).__module__}.{type(value).__qualname__}: a state dict is made of "
        "dicts, lists, tuples, tensors, numbers, strings and None"
    )


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous uint8 tensor on the CPU."""
    return memoryview(cast(Any, tensor.view(-1).numpy()))


def _pack(content: Mapping[str, Tensor]) -> dict[str, Any]:
    """A chunk as it is stored: uint8 (frames) in compressed blocks, the rest as it is."""
    packed: dict[str, Any] = {}
    workers = min(4, os.cpu_count() or 1)
    for name, tensor in content.items():
        tensor = _storable(tensor, name)
        if tensor.dtype != torch.uint8:
            packed[name] = tensor
            continue
        flat = _bytes(tensor.contiguous())
        blocks = [flat[i : i + BLOCK] for i in range(0, len(flat), BLOCK)]
        with ThreadPoolExecutor(workers) as pool:  # zlib lets go of the interpreter
            compressed = list(pool.map(lambda block: zlib.compress(block, 1), blocks))
        # `frombuffer` wants memory that can be written to.
        packed[name] = {
            "shape": list(tensor.shape),
            "blocks": [torch.frombuffer(bytearray(block), dtype=torch.uint8) for block in compressed],
        }
    return packed


def _unpack(packed: Mapping[str, Any]) -> dict[str, Tensor]:
    content: dict[str, Tensor] = {}
    for name, stored in packed.items():
        if isinstance(stored, Tensor):
            content[name] = stored
            continue
        flat = torch.empty(stored["shape"], dtype=torch.uint8)
        view = _bytes(flat)
        filled = 0
        for block in stored["blocks"]:
            data = zlib.decompress(block.numpy())
            view[filled : filled + len(data)] = data
            filled += len(data)
        if filled != len(view):
            raise ValueError(f"{name} unpacks to {filled} bytes instead of {len(view)}")
        content[name] = flat
    return content
