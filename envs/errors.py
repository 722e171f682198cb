"""Errors of environments that a user can fix."""

from __future__ import annotations


class UnknownEnvironment(ValueError):
    """There is no environment of this name; the message suggests the closest names."""


class MissingPackage(UnknownEnvironment):
    """The environment's package is not installed; the message gives the command that installs it."""


class RenderingUnavailable(ValueError):
    """Pixels were requested from a simulator that cannot draw on this machine; the message names a remedy."""


class NoSuchName(UnknownEnvironment):
    """A suite does not have this name; `make` adds the closest names."""
