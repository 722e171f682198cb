"""Checkpoints of a run. A kill at any moment, or a full disk, loses at most the work since the last checkpoint.

    <run>/checkpoints/step_000000012345/<part>.pt     one file per part (agent, log, …), `torch.load(weights_only=True)`
    <run>/checkpoints/step_000000012345/manifest.json sizes and hashes of all files, replay chunks included
    <run>/replay/<chunk>.<version>.pt                 replay content, shared by the checkpoints that name it
    <run>/SAVED                                       marks that the run has saved; stays if the checkpoints are lost
    <run>/.lock                                       locked by the process that runs in the folder

A checkpoint exists once its folder has its final name. All files that it names are durable by then: each file is
written, synced and, for chunks, renamed; then the manifest is written; then the folder is renamed. All other files are
leftovers of a killed save. The content of a chunk never changes under its name, so a save writes only chunks whose
version is new, and a replay of gigabytes costs only its changed part.

A checkpoint is good if every file that it names has the size and hash in its manifest. Reading takes the newest good
checkpoint and reports each newer, damaged one.
"""

from __future__ import annotations

import errno
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
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..common.files import DONE, is_count, sync_folder, write_durably
from ..common.moved import moved

__getattr__ = moved(__name__, {"Found": "pliant.agents.checkpoint.Checkpoint"})

SCHEMA = 1
MANIFEST = "manifest.json"
SAVED = "SAVED"
BLOCK = 4 << 20  # bytes of frames that are compressed together
STEP = re.compile(r"step_(\d{12,})(\.old)?")
NAME = re.compile(r"\w[\w.-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")


class CheckpointDamaged(RuntimeError):
    """The files of a checkpoint do not match its manifest."""


class NoGoodCheckpoint(RuntimeError):
    """The run has checkpoints, but all of them are damaged."""


class NewerSchema(RuntimeError):
    """A checkpoint was written by a newer version of this package."""


class SaveFailed(OSError):
    """A checkpoint could not be written. Earlier checkpoints are unchanged."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


class DiskFull(SaveFailed):
    """A checkpoint did not fit on the disk or into the quota."""


class RunLocked(RuntimeError):
    """Another process runs in this folder."""


class FolderUnusable(OSError):
    """A run's folder cannot be created, or cannot be written to."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


class FolderMoved(RuntimeError):
    """A run's folder was moved, replaced or deleted while the run was in it.

    `place` is the folder's present path, or None if it is unknown.
    """

    def __init__(self, message: str, place: Path | None = None) -> None:
        super().__init__(message)
        self.place = place


@runtime_checkable
class Chunked(Protocol):
    """An object that is saved in named chunks, each with a version that changes whenever its content changes."""

    def chunks(self) -> Sequence[tuple[str, int]]: ...
    def chunk(self, name: str) -> Mapping[str, Tensor]: ...
    def load_chunk(self, name: str, content: dict[str, Tensor]) -> None: ...


class Saved(NamedTuple):
    """The result of a save: path, bytes written (parts, new chunks, manifest and SAVED), and seconds."""

    path: Path
    bytes: int
    seconds: float


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Checkpoint:
    """A checkpoint on disk whose files were verified (all of them, or those of the requested parts)."""

    path: Path
    manifest: dict[str, Any]
    damaged: list[str] = field(default_factory=list)  # newer checkpoints that were skipped, with reasons

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(name.removesuffix(".pt") for name in self.manifest["files"])

    def load(self, part: str, map_location: str | torch.device = "cpu") -> dict[str, Any]:
        """Load the state that was saved as `part`.

        Raises:
            KeyError: The checkpoint has no such part.
            CheckpointDamaged: The file is damaged.
        """
        if part not in self.parts:
            raise KeyError(f"{self.path} has no part {part!r}; it has {', '.join(self.parts)}")
        entry = self.manifest["files"][f"{part}.pt"]
        state = _load(self.path / f"{part}.pt", entry, map_location)
        if not isinstance(state, dict):
            raise CheckpointDamaged(f"{self.path / part}.pt holds {type(state).__name__}, not a dict")
        return state

    def restore(self, memory: object) -> None:
        """Load the content of all chunks into `memory`; call its `load_state_dict` first.

        Raises:
            CheckpointDamaged: The file of a chunk is damaged.
            TypeError: The checkpoint has chunks, and `memory` is not `Chunked`.
        """
        for entry in self.manifest["chunks"]:
            if not isinstance(memory, Chunked):
                raise TypeError(f"{self.path} contains chunks of a replay, and {type(memory).__name__} has none")
            path = _run_folder(self.path) / "replay" / entry["file"]
            try:
                content = _unpack(_load(path, entry, "cpu"))
            except (KeyError, TypeError, ValueError, zlib.error) as error:
                raise CheckpointDamaged(f"{path} is not a replay chunk: {error!r}") from error
            memory.load_chunk(entry["name"], content)


class Checkpoints:
    """The checkpoints of the run in `folder`; the newest `keep` are kept.

    In a folder that holds checkpoints, call `resume` or `clear` before `save`: chunk versions of two different runs
    must not mix.

    `lock` is the run's lock, if it holds one; a save then checks that the folder is still the one in which the run
    started.
    """

    lock: RunLock | None = None

    def __init__(self, folder: Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.folder = Path(folder)
        self.keep = keep
        self._steps = self.folder / "checkpoints"
        self._chunks = self.folder / "replay"
        self._known: dict[str, dict[str, Any]] = {}  # chunk files that a checkpoint names: {"size", "sha256"}
        self._ready = not _listed(self.folder)
        self._marked = (self.folder / SAVED).exists()

    # Writing

    def save(self, step: int, parts: Mapping[str, Mapping[str, Any]], chunks: Chunked | None = None) -> Saved:
        """Write the checkpoint of `step`, then delete all but the newest `keep`.

        `parts` are state dicts: nested dicts, lists and tuples of tensors, numbers, strings and None. Tensors are
        copied to the CPU, without the rest of the storage that they view.

        Raises:
            TypeError: A state holds another type; the message names its place.
            DiskFull, SaveFailed: The checkpoint could not be written; its files are removed again.
            FolderMoved: The folder is no longer the one of `lock`. If its new path is known, the checkpoint was
                written there.
            RuntimeError: The folder holds checkpoints of an earlier run, and neither `resume` nor `clear` was called.
        """
        if not self._ready:
            raise RuntimeError(f"{self.folder} contains checkpoints of an earlier run: call resume() or clear() first")
        try:
            self._check_place()
            try:
                saved = self._save(step, parts, chunks)
            except SaveFailed:
                self._check_place()
                raise
            self._check_place()
        except FolderMoved as moved:
            if moved.place is None:
                raise
            there = Checkpoints(moved.place, self.keep)
            there.accept(None)
            there._save(step, parts, chunks)
            raise FolderMoved(f"{moved} It is saved there at step {step:,}; resume it there", moved.place) from None
        return saved

    def _check_place(self) -> None:
        if self.lock is not None:
            self.lock.check()

    def _save(self, step: int, parts: Mapping[str, Mapping[str, Any]], chunks: Chunked | None) -> Saved:
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
            if final.exists():  # the same step again: a resumed run was stopped before its first step
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
        if not self._marked:
            try:
                writing.write(self.folder / SAVED, f"first saved at step {step}\n".encode())
                sync_folder(self.folder)
            except OSError as error:
                raise SaveFailed(f"{final} is saved, but {writing.file} is not: {error}", error.errno) from error
            self._marked = True
        return Saved(final, writing.bytes, time.perf_counter() - start)

    def _save_chunk(self, writing: _Writing, chunks: Chunked, name: str, version: int) -> dict[str, Any]:
        _check_name(name)
        file = f"{name}.{version}.pt"
        path = self._chunks / file
        known = self._known.get(file)
        # Reuse only files that a checkpoint names: any other file may be the leftover of a killed save.
        if known is not None and path.exists() and path.stat().st_size == known["size"]:
            return {"file": file, **known}
        staging = path.with_name(file + ".tmp")
        entry = writing.write(staging, _serialised(_pack(chunks.chunk(name))))
        if known is None:
            writing.new.append(path)
        os.replace(staging, path)
        return {"file": file, **entry}

    def _undo(self, writing: _Writing, staging: Path, final: Path, old: Path) -> None:
        """Remove the files of a failed save, which frees their disk space."""
        if writing.committing and final.exists() and not staging.exists():
            return  # the interrupt came just after the checkpoint got its final name
        if old.exists() and not final.exists():
            os.rename(old, final)
        if staging.exists():
            shutil.rmtree(staging)
        for path in [*writing.new, *self._chunks.glob("*.tmp")]:
            path.unlink(missing_ok=True)

    def _explained(self, error: OSError, writing: _Writing) -> SaveFailed:
        good = _listed(self.folder)
        kept = f"the last checkpoint, {good[0]}, is unchanged" if good else "there is no earlier checkpoint"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(_existing(self.folder)).free
            limit = {errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is over the size limit"}
            return DiskFull(
                f"cannot save a checkpoint in {self.folder}: {limit.get(error.errno, 'the disk is full')}. Writing "
                f"{writing.file} needs {writing.needed:,} bytes together with the files before it; {free:,} bytes are "
                f"free; {kept}. Make room and resume",
                error.errno,
            )
        return SaveFailed(f"cannot save a checkpoint in {self.folder}: {error}; {kept}", error.errno)

    def _remove_leftovers(self) -> None:
        """Remove the leftovers of killed saves and deletions."""
        for path in self._steps.glob("*.tmp"):
            shutil.rmtree(path)
        for path in self._chunks.glob("*.tmp"):
            path.unlink()

    def _prune(self) -> None:
        kept: list[Path] = []
        steps: set[int] = set()
        for path in _listed(self.folder):
            # A `.old` copy of the same step is no longer needed: it covered the moment between two renames.
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
        """Delete chunk files that none of the given checkpoints names."""
        named: dict[str, dict[str, Any]] = {}
        for path in kept:
            try:
                manifest = _manifest(path)
            except CheckpointDamaged:  # reading reports it; its chunks are useless without a manifest
                continue
            named |= {c["file"]: {"size": c["size"], "sha256": c["sha256"]} for c in manifest["chunks"]}
        if self._chunks.is_dir():
            for file in os.listdir(self._chunks):
                if file not in named and not (self._chunks / file).is_dir():  # a folder was not created by a save
                    os.unlink(self._chunks / file)
        self._known = named

    # Reading

    def newest_good(
        self, verify: Sequence[str] | None = None, report: Callable[[str], None] = _print
    ) -> Checkpoint | None:
        """Find the newest undamaged checkpoint; None if there are no checkpoints. Changes no file.

        Args:
            verify: Parts to verify; None verifies all parts and the replay.
            report: Called with a message for each damaged checkpoint that is skipped.

        Raises:
            NoGoodCheckpoint: All checkpoints are damaged.
            NewerSchema: A checkpoint was written by a newer version.
        """
        damaged: list[str] = []
        for path in _listed(self.folder):
            try:
                manifest = _verified(path, verify)
            except CheckpointDamaged as error:
                damaged.append(str(error))
                report(f"damaged checkpoint skipped: {error}")
            else:
                return Checkpoint(path, manifest, damaged)
        if damaged:
            reasons = "\n  ".join(damaged)
            raise NoGoodCheckpoint(
                f"none of the {len(damaged)} checkpoints in {self.folder} can be used:\n  {reasons}\n"
                "Restore the files from a backup, or start over in another folder"
            )
        return None

    def resume(self, report: Callable[[str], None] = _print) -> Checkpoint | None:
        """Find the `newest_good` checkpoint and prepare the folder to continue from it.

        Newer, damaged checkpoints are renamed to `….damaged`, since the run will reach their steps again. Chunk files
        that no other checkpoint names are deleted, since the run will reach their versions again.
        """
        newest = self.newest_good(report=report)
        self.accept(newest)
        return newest

    def accept(self, checkpoint: Checkpoint | None) -> None:
        """Prepare the folder to continue from the result of `newest_good` (None: from the start); see `resume`.

        Raises:
            SaveFailed: The folder cannot be written to.
        """
        listed = _listed(self.folder)
        newer = listed[: listed.index(checkpoint.path)] if checkpoint is not None else []
        try:
            for path in newer:
                aside = path.with_name(path.name + ".damaged")
                if aside.exists():
                    shutil.rmtree(aside)
                os.rename(path, aside)
            self._collect(listed[len(newer) :])
        except OSError as error:
            raise SaveFailed(f"cannot resume in {self.folder}: {error}", error.errno) from error
        self._ready = True

    def clear(self) -> None:
        """Delete all checkpoints and the replay of an earlier run in this folder."""
        # Checkpoints before chunks, the newest last: a kill in between leaves good checkpoints or none.
        for path in reversed(_listed(self.folder)):
            _remove(path)
        for folder in (self._steps, self._chunks):
            if folder.is_dir():
                shutil.rmtree(folder)
        (self.folder / SAVED).unlink(missing_ok=True)
        self._known = {}
        self._ready = True
        self._marked = False

    @staticmethod
    def open(
        path: Path, verify: Sequence[str] | None = ("agent",), report: Callable[[str], None] = _print
    ) -> Checkpoint:
        """Open a checkpoint for reading. `path` is a checkpoint's folder, or a run folder (opens the newest good one).

        Only the parts in `verify` are verified, so an agent can be loaded without its replay.

        Raises:
            FileNotFoundError: There is no checkpoint at `path`.
            CheckpointDamaged, NoGoodCheckpoint: The checkpoint, or every checkpoint of the run, is damaged.
            NewerSchema: A checkpoint was written by a newer version.
        """
        path = Path(path)
        if STEP.fullmatch(path.name):
            if not path.is_dir():
                raise FileNotFoundError(f"there is no checkpoint {path}")
            return Checkpoint(path, _verified(path, verify))
        newest = Checkpoints(path).newest_good(verify, report)
        if newest is None:
            raise FileNotFoundError(f"{path} holds no checkpoints: give a run folder, or a folder step_… in one")
        return newest


def saved_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints in a run's folder, damaged ones included, in ascending order."""
    return sorted({_step(path) for path in _listed(folder)})


def has_saved(folder: Path) -> str | None:
    """The name of a file that proves that the run in a folder once saved a checkpoint, even if none is left; else None.

    Returns None for a run that was killed before its first checkpoint, although it may have log files.
    """
    # A save makes `checkpoints` before `replay`. Runs of earlier versions have no SAVED.
    if (folder / "replay").is_dir() and not (folder / "checkpoints").exists():
        return "replay/"
    return next((name for name in (SAVED, DONE, "fork.json") if (folder / name).exists()), None)


def branch(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Make a checkpoint the first checkpoint of another run, in a folder that has none, and verify it there.

    Files are hard-linked if the file system allows it, since the content of a file never changes under its name, and
    copied otherwise. With links, a replay of gigabytes takes no additional space until one of the two runs continues.

    Raises:
        CheckpointDamaged: The checkpoint does not match its manifest, or its run has removed it meanwhile.
        SaveFailed: The files cannot be written (the disk is full, for example).
    """
    source = _run_folder(checkpoint.path)
    target = Path(folder) / "checkpoints" / checkpoint.path.name.removesuffix(".old")
    try:
        target.mkdir(parents=True)
        (Path(folder) / "replay").mkdir(exist_ok=True)
        for name in (MANIFEST, *checkpoint.manifest["files"]):
            _link(checkpoint.path / name, target / name)
        for entry in checkpoint.manifest["chunks"]:
            _link(source / "replay" / entry["file"], Path(folder) / "replay" / entry["file"])
    except FileNotFoundError as error:
        raise CheckpointDamaged(
            f"{error.filename} is gone: the run removed this checkpoint while it was copied; stop the run, or "
            "raise its --keep-checkpoints"
        ) from error
    except OSError as error:
        raise SaveFailed(f"cannot copy {checkpoint.path} to {target}: {error}", error.errno) from error
    return Checkpoints.open(target, verify=None)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copyfile(source, target)


class RunLock:
    """A lock on a run's folder, held by one process at a time; a context manager. Creates the folder if necessary.

    The kernel releases the lock when the process ends, for whatever reason. The lock file names the process.

    Raises:
        RunLocked: Another process holds the lock; the message names it.
        FolderUnusable: The folder cannot be created or locked; the message gives the reason.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / ".lock"
        # A short wait, because another process may delete the file (`undo`) between our opening and locking it.
        self._lock = FileLock(
            self.path,
            timeout=0.1,
            poll_interval=0.01,
            thread_local=False,
            fallback_to_soft=False,
            on_acquired=self._write_holder,
        )
        self._descriptor: int | None = None  # of the lock file
        self._directory: int | None = None  # descriptor of the folder; stays valid if the folder is moved
        self._made: list[Path] = []  # folders that this lock created, the outermost first
        self._new = False  # True if this lock created the lock file
        self.acquire()

    def acquire(self) -> None:
        """Take the lock, or fail within a tenth of a second.

        Raises:
            RunLocked: Another process holds the lock.
            FolderUnusable: The folder cannot be created or locked.
        """
        if self._lock.is_locked:
            return
        new = False
        try:
            self._made += make_folder(self.folder)
            new = not self.path.exists()
            self._lock.acquire()
            self._new = new
            self._directory = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except Timeout:
            raise RunLocked(
                f"{self.folder} is in use by {self._holder()}: wait for it, stop it, or choose another folder"
            ) from None
        except OSError as error:
            if new and not self._lock.is_locked:  # for example, a file system without locks
                with suppress(OSError):
                    self.path.unlink()
            self.undo()
            if isinstance(error, FolderUnusable):
                raise
            raise FolderUnusable(f"cannot lock the folder {self.folder}: {error.strerror}", error.errno) from error

    def _write_holder(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor

    def _holder(self) -> str:
        """The process that holds the lock, according to the lock file."""
        try:
            return self.path.read_text(errors="replace").strip()[:1000] or "another process"
        except OSError:
            return "another process"

    def check(self) -> None:
        """Check that the folder is still the one that was locked, and that the lock is still held.

        If only the lock file was deleted, the lock is taken again.

        Raises:
            FolderMoved: The folder was moved, replaced or deleted.
            RunLocked: The lock file was deleted, and another process has taken the lock.
        """
        if self._descriptor is None or self._directory is None or _is_at(self.path, self._descriptor):
            return
        if _is_at(self.folder, self._directory):
            self.release()
            self.acquire()
            return
        place = _place_of(self._directory)
        if place is None:
            raise FolderMoved(f"{self.folder} was moved, replaced or deleted while a run was in it.")
        raise FolderMoved(f"{self.folder} was moved to {place} while a run was in it.", place)

    def release(self) -> None:
        """Release the lock; a second call does nothing. The lock file stays."""
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None
        self._lock.release()
        self._descriptor = None

    def undo(self) -> None:
        """Release the lock; delete the lock file and the empty folders, if this lock created them."""
        with suppress(OSError):  # for example, the disk has become read-only: report the earlier error, not this one
            # A process that opened the file before this, and locks it afterwards, notices that it was deleted.
            if self._new and self._descriptor is not None and _is_at(self.path, self._descriptor):
                self.path.unlink()
        self._new = False
        self.release()
        unmake(self._made)
        self._made = []

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def make_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents; return the folders that did not exist before, the outermost first.

    Raises:
        FolderUnusable: A folder cannot be created; those created before it are removed again.
    """
    made: list[Path] = []
    try:
        for place in (*reversed(folder.parents), folder):
            if not place.is_dir():
                place.mkdir(exist_ok=True)
                made.append(place)
    except OSError as error:
        unmake(made)
        raise FolderUnusable(f"cannot make the folder {place}: {error.strerror}", error.errno) from error
    return made


def unmake(made: Sequence[Path]) -> None:
    """Remove the folders that `make_folder` created, if they are empty."""
    for place in reversed(made):
        with suppress(OSError):  # the folder is not empty, or does not exist any more
            place.rmdir()


def _is_at(path: Path, descriptor: int) -> bool:
    """True if an open descriptor still belongs to `path`. Also True if `path` cannot be checked: the next write will
    report the error."""
    try:
        there = os.stat(path)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _place_of(directory: int) -> Path | None:
    """The present path of an open folder, or None if the operating system does not report it."""
    try:
        place = Path(os.readlink(f"/proc/self/fd/{directory}"))
    except OSError:
        return None
    return place if _is_at(place, directory) else None


# Files


class _Writing:
    """Writes the files of one save, durably, and keeps what is needed to report and undo a failure."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0  # bytes of complete files
        self.needed = 0  # the same, plus the size of the file in progress
        self.file = folder
        self.committing = False  # True just before the checkpoint gets its final name
        self.new: list[Path] = []  # chunk files that no checkpoint names yet

    def write(self, path: Path, data: memoryview | bytes) -> dict[str, Any]:
        """Write a file; return its size and hash."""
        size = len(data)
        self.file, self.needed = path, self.bytes + size
        digest = hashlib.sha256(data).hexdigest()
        write_durably(path, data)
        self.bytes += size
        return {"size": size, "sha256": digest}


def _remove(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that after a kill a half-deleted one does not look complete."""
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
    """The checkpoints of a run folder, newest first; a checkpoint comes before its `.old` copy."""
    steps = Path(folder) / "checkpoints"
    checkpoints = [path for path in steps.iterdir() if STEP.fullmatch(path.name)] if steps.is_dir() else []
    return sorted(checkpoints, key=lambda path: (-_step(path), path.name))


def _run_folder(checkpoint: Path) -> Path:
    return checkpoint.resolve().parent.parent


def _is_file_name(name: Any) -> bool:
    return _matches(NAME, name) and not name.endswith(".tmp")


def _check_name(name: str) -> None:
    if not _is_file_name(name):
        raise ValueError(
            f"{name!r} is not a valid file name: use letters, digits, '_', '-' and '.', and begin with a letter"
        )


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
    """Read and check the manifest of a checkpoint.

    Its own hash is checked first, so that a newer schema is not mistaken for a damaged file.

    Raises:
        CheckpointDamaged: The manifest is missing or damaged.
        NewerSchema: The checkpoint was written by a newer version.
    """
    file = path / MANIFEST
    try:
        data = file.read_bytes()
        content = json.loads(data)
    except FileNotFoundError:
        raise CheckpointDamaged(f"{file} is missing") from None
    except OSError as error:
        raise CheckpointDamaged(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointDamaged(f"{file} is not JSON ({len(data)} bytes): {error}") from error
    except RecursionError as error:
        raise CheckpointDamaged(f"{file} is not a manifest: it is nested too deeply") from error
    if not isinstance(content, dict) or data != _sealed({k: v for k, v in content.items() if k != "sha256"}):
        raise CheckpointDamaged(f"{file} does not match its own hash")
    if not is_count(content.get("schema")):
        raise CheckpointDamaged(f"{file} has no schema")
    if content["schema"] > SCHEMA:
        raise NewerSchema(
            f"{path} was written by pliant {content.get('pliant')} (schema {content['schema']}); this is pliant "
            f"{_version()}, which reads schemas up to {SCHEMA}: upgrade pliant"
        )
    _check_manifest(content, file)
    if content["step"] != _step(path):
        raise CheckpointDamaged(f"{path} contains the manifest of step {content['step']}")
    return content


def _check_manifest(content: Mapping[str, Any], file: Path) -> None:
    """Check that a manifest has the form that `save` writes.

    The hash does not prove that: anyone who writes a manifest can write its hash. The files that it names are read,
    linked and deleted, so a name must not point out of the folder.

    Raises:
        CheckpointDamaged: The manifest has another form.
    """

    def entry(value: Any, name: str) -> None:
        if not (isinstance(value, dict) and is_count(value.get("size")) and _matches(SHA256, value.get("sha256"))):
            raise CheckpointDamaged(f"{file} has no size and sha256 for {name}")

    if not is_count(content.get("step")):
        raise CheckpointDamaged(f"{file} has no step")
    files, chunks = content.get("files"), content.get("chunks")
    if not isinstance(files, dict) or not isinstance(chunks, list):
        raise CheckpointDamaged(f"{file} has no lists of files and chunks")
    for name, value in files.items():
        if not (_is_file_name(name) and name.endswith(".pt")):
            raise CheckpointDamaged(f"{file} lists the file {name!r}, which is not a valid name of a part")
        entry(value, name)
    for value in chunks:
        if not (isinstance(value, dict) and _is_file_name(value.get("file")) and _is_file_name(value.get("name"))):
            raise CheckpointDamaged(f"{file} lists a chunk without a valid file name: {_shortened(value)}")
        entry(value, value["file"])


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _shortened(value: Any) -> str:
    text = repr(value.get("file", value) if isinstance(value, dict) else value)
    return text if len(text) <= 100 else text[:99] + "…"


def _verified(path: Path, parts: Sequence[str] | None) -> dict[str, Any]:
    """The manifest, after a check of every byte of the given parts (None: of all parts and the replay)."""
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
    """The content of a file that a manifest names.

    Raises:
        CheckpointDamaged: The file is missing, unreadable, or has another size or hash.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointDamaged(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointDamaged(f"{path} cannot be read: {error.strerror}") from error
    if len(data) != entry["size"]:
        raise CheckpointDamaged(f"{path} has {len(data):,} bytes instead of {entry['size']:,}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointDamaged(f"{path} does not match its hash in the manifest")
    return data


# Content


def _serialised(content: Any) -> memoryview:
    # Serialise to memory: torch's file writer turns an OSError into an internal assertion error without its cause.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def _load(path: Path, entry: Mapping[str, Any], map_location: str | torch.device) -> Any:
    data = _read(path, entry)
    try:
        return torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    except Exception as error:  # torch and pickle raise many types; all of them mean that `save` did not write the file
        raise CheckpointDamaged(f"{path} cannot be loaded: {error}") from error


def _storable(value: Any, place: str) -> Any:
    """A copy of a state that `torch.load(weights_only=True)` accepts: tensors on the CPU, without unused storage.

    Raises:
        TypeError: The state holds another type; the message names its place.
    """
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
    """A chunk in its stored form: uint8 tensors (frames) as compressed blocks, other tensors unchanged."""
    packed: dict[str, Any] = {}
    workers = min(4, os.cpu_count() or 1)
    for name, tensor in content.items():
        tensor = _storable(tensor, name)
        if tensor.dtype != torch.uint8:
            packed[name] = tensor
            continue
        flat = _bytes(tensor.contiguous())
        blocks = [flat[i : i + BLOCK] for i in range(0, len(flat), BLOCK)]
        with ThreadPoolExecutor(workers) as pool:  # zlib releases the interpreter lock
            compressed = list(pool.map(lambda block: zlib.compress(block, 1), blocks))
        # `frombuffer` needs writable memory.
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
