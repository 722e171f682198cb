"""Measurements on disk: a bench that was killed goes on with what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pliant.common.files import replacing

T = TypeVar("T")


class Record:
    """The measurements of one bench, written to a file after each of them.

    Args:
        file: The file; a record of the same settings that is not finished is continued, and any other is replaced.
        settings: What must be equal for measurements to belong together.
    """

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        self.file = file
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.measurements: dict[str, Any] = self._unfinished()
        self.resumed = len(self.measurements)

    def _unfinished(self) -> dict[str, Any]:
        try:
            content = json.loads(self.file.read_text())
            same = content["settings"] == self.settings and content["finished"] is False
            return dict(content["measurements"]) if same else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def once(self, key: str, measure: Callable[[], T]) -> T:
        """The measurement of this key: the recorded one, or else a new one, which is recorded."""
        if key not in self.measurements:
            self.measurements[key] = measure()
            self._write(finished=False)
        value: T = self.measurements[key]
        return value

    def finish(self) -> None:
        """Mark the record as finished: the next bench measures anew."""
        self._write(finished=True)

    def _write(self, finished: bool) -> None:
        content = {"settings": self.settings, "finished": finished, "measurements": self.measurements}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.file) as scratch:
            scratch.write_text(json.dumps(content, indent=1) + "\n")
