"""Any gymnasium environment by its id: classic control, MuJoCo, user-registered ones, `module:Name-v0`.

Observations are float32: simulators that compute in float64 (MuJoCo, classic control) continue in float64 internally,
and their observations are rounded when they are returned.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from ..common.spaces import ObservationSpec
from . import modules
from .adapter import Array, Envs, ListAdapter
from .errors import MissingPackage, NoSuchName, RenderingUnavailable

if TYPE_CHECKING:
    from .config import EnvConfig
    from .drift import Drifts


@functools.cache
def area_weights(size: int, wanted: int) -> Array:
    """Weights [wanted, size] for averaging `size` pixels into `wanted`, as multiples of 1/size of their sum.

    Integers stored as float64: sums of products stay exact, so that an image is the same on every machine.
    """
    starts = np.arange(wanted)[:, None] * size
    pixels = np.arange(size)[None, :] * wanted
    overlap = np.minimum(starts + size, pixels + wanted) - np.maximum(starts, pixels)
    return np.maximum(overlap, 0).astype(np.float64)


def shrink(image: Array, side: int) -> Array:
    """Average a uint8 image [H, W, C] over areas into uint8 [C, side, side]."""
    height, width, _ = image.shape
    rows, columns = area_weights(height, side), area_weights(width, side)
    channels = np.ascontiguousarray(image.transpose(2, 0, 1), np.float64)
    sums = (rows @ channels) @ columns.T
    return np.rint(sums / (height * width)).astype(np.uint8)


class ActionRepeat(gymnasium.Wrapper[Array, Any, Array, Any]):
    """Repeats every action `times` times, or until the episode ends; rewards are summed."""

    def __init__(self, env: gymnasium.Env[Array, Any], times: int) -> None:
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Act `times` times."""
        total = 0.0
        for _ in range(self.times):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


class Pixels(gymnasium.Wrapper[Array, Any, Any, Any]):
    """Shows the last `stack` rendered frames [3 * stack, side, side], the newest last.

    An episode's first observation repeats its first frame, as in Yarats et al. (2021), DrQ-v2.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], side: int, stack: int) -> None:
        super().__init__(env)
        self.side = side
        self.frames: deque[Array] = deque(maxlen=stack)
        self.observation_space = gymnasium.spaces.Box(0, 255, (3 * stack, side, side), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode and draw its first frame."""
        _, info = self.env.reset(seed=seed, options=options)
        frame = self._draw()
        self.frames.extend([frame] * self.frames.maxlen)  # type: ignore[operator]
        return np.concatenate(self.frames), info

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """Act and draw."""
        _, reward, terminated, truncated, info = self.env.step(action)
        self.frames.append(self._draw())
        return np.concatenate(self.frames), reward, terminated, truncated, info

    def _draw(self) -> Array:
        image = np.asarray(self.env.render())
        if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] != 3:
            raise ValueError(f"{self.env} draws {image.dtype} {image.shape}, not uint8 (height, width, 3)")
        return image.transpose(2, 0, 1) if image.shape[:2] == (self.side, self.side) else shrink(image, self.side)


def make_control(
    name: str,
    num_envs: int,
    seed: int,
    config: EnvConfig,
    evaluation: bool,
    drawn: bool = False,
    drift: Drifts | None = None,
) -> Envs:
    """`num_envs` environments of one gymnasium id; see `pliant.envs.make`."""
    own = modules.imported(name)
    try:
        spec = gymnasium.spec(own)
    except gymnasium.error.Error:
        raise (NoSuchName(name) if own == name else modules.not_registered(name)) from None
    if own != name:
        modules.check_entry_point(name, spec)
    if spec.entry_point == "ale_py.env:AtariEnv":  # an older id, which exists once ale_py is imported
        raise NoSuchName(name)
    if config.frame_stack is not None and not config.pixels:
        raise ValueError(f"{name}: frame_stack stacks drawn frames; set pixels too (for instance pixels=84)")
    stack = 3 if config.frame_stack is None else config.frame_stack
    with _without_noise(spec):
        envs = [_build(name, spec, config, drawn) for _ in range(num_envs)]
    if drift is not None:
        envs = drift.around(envs, name, pixels=bool(config.pixels))
    if config.pixels:
        envs = [Pixels(env, config.pixels, stack) for env in envs]
    return ListAdapter(
        envs,
        name=name,
        observation=_pixel_spec(config.pixels, stack) if config.pixels else None,
        seed=seed,
        evaluation=evaluation,
        frame_skip=config.action_repeat,
        drift=drift,
    )


def _pixel_spec(side: int, stack: int) -> ObservationSpec:
    return ObservationSpec((3 * stack, side, side), torch.uint8, 255.0, stack=stack, padding="repeat")


def _install(spec: Any, error: Exception) -> str:
    commands = {"mujoco": "pliant[mujoco]", "box2d": "pliant[box2d]", "classic_control": "gymnasium[classic-control]"}
    for package, command in commands.items():
        if str(spec.entry_point).startswith(f"gymnasium.envs.{package}"):
            return f"pip install '{command}'"
    return str(error)  # gymnasium's messages end in a command


@contextmanager
def _without_noise(spec: Any) -> Iterator[None]:
    """Create and draw an environment without warnings that do not concern the user: gymnasium's about its metadata,
    MuJoCo's about its model, GLFW's and SDL's about a missing display. Other warnings are passed on."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault(
            "SDL_VIDEODRIVER", "dummy"
        )  # classic control draws into memory, but SDL requires a display
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*initialised with render_mode=", module=r"gymnasium\.")
        warnings.filterwarnings("ignore", module=r"glfw(\.|$)")
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
            with _without_advice():
                yield
        else:
            yield


@contextmanager
def _without_advice() -> Iterator[None]:
    """Collect MuJoCo's warnings, and pass on all except those about deprecated features: a user of gymnasium's models
    cannot change them. By default MuJoCo prints warnings, and writes them to a file in the current folder."""
    try:
        import mujoco
    except ImportError:  # gymnasium reports it, with the remedy
        yield
        return
    except Exception as error:  # its import loads GL
        chosen = os.environ.get("MUJOCO_GL", "")
        raise RenderingUnavailable(
            f"MuJoCo cannot be imported with the environment variable MUJOCO_GL={chosen} "
            f"({type(error).__name__}: {error}); unset it, or set it to a GL library that this machine has"
        ) from error
    heard: list[str] = []
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(heard.append)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
    for text in heard:
        if "is deprecated and will be removed" not in text:
            warnings.warn(f"MuJoCo: {text}", stacklevel=2)


def _let_unfinished_viewers_go() -> None:
    """gymnasium's viewer for MuJoCo frees its GL context when it is deleted, and Python prints the error of a viewer
    that never got a context. This gives such a viewer an empty context."""
    viewer = getattr(sys.modules.get("gymnasium.envs.mujoco.mujoco_rendering"), "OffScreenViewer", None)
    if viewer is not None and not hasattr(viewer, "opengl_context"):
        viewer.opengl_context = SimpleNamespace(free=lambda: None)


def _import_quietly(spec: Any) -> None:
    """Import Box2D, whose bindings warn at every import, and crash the interpreter if warnings are errors."""
    if str(spec.entry_point).startswith("gymnasium.envs.box2d"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(str(spec.entry_point).partition(":")[0])


def _build(name: str, spec: Any, config: EnvConfig, drawn: bool) -> gymnasium.Env[Any, Any]:
    mujoco = str(spec.entry_point).startswith("gymnasium.envs.mujoco")
    options: dict[str, Any] = {"max_episode_steps": config.max_episode_steps}
    if config.pixels or drawn:
        options["render_mode"] = "rgb_array"
        if mujoco and config.pixels:
            options |= {"width": config.pixels, "height": config.pixels}
    try:
        _import_quietly(spec)
        # The checker warns about properties that users of a published task cannot change, and slows down every step.
        # A spec instead of a name, because a name causes a warning if there is a newer version of the task.
        env: gymnasium.Env[Any, Any] = gymnasium.make(spec, disable_env_checker=True, **options)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise MissingPackage(f"{name} needs a package that is not installed: {_install(spec, error)}") from error
    if config.action_repeat > 1:
        env = ActionRepeat(env, config.action_repeat)
    if config.pixels or drawn:
        env.reset(seed=0)
        try:
            env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise MissingPackage(f"{name} cannot be drawn: {_install(spec, error)}") from error
        except Exception as error:  # each GL back end has its own exceptions
            _let_unfinished_viewers_go()
            raise RenderingUnavailable(
                f"{name} cannot be drawn here ({type(error).__name__}: {error}). MuJoCo draws off screen if the "
                "environment variable MUJOCO_GL is egl (a GPU, or Mesa) or osmesa (CPU) when Python starts"
            ) from error
    return env
