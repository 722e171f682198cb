"""Errors of environments that a user can mend."""

from __future__ import annotations


class UnknownEnvironment(ValueError):
    """No environment of this name; the message names the nearest ones."""


class MissingPackage(UnknownEnvironment):
    """The environment's package is not installed; the message says how to install it."""


class RenderingUnavailable(ValueError):
    """Pixels were asked of a simulator that cannot draw on this machine; the message names the way out."""


class NoSuchName(UnknownEnvironment):
    """A suite does not have this name; `make` adds the nearest names."""
