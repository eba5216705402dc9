"""Which device a command is about: one whose configuration or state folder is on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgepack_cli.errors import CommandError, Exit

if TYPE_CHECKING:
    from edgepack_runtime.config import RuntimeConfig

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CONFIG = Path("/etc/edgepack/device.toml")
_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Place:
    """A device on this machine; ``config`` is None when only its state folder is known."""

    state_dir: Path
    config: RuntimeConfig | None = None
    config_path: Path | None = None


def place_options(function: F) -> F:
    """Add ``--config`` and ``--state-dir``; :func:`find_place` takes what they give."""
    function = click.option(
        "--state-dir", type=_PATH, help="The daemon's state folder, where no configuration is."
    )(function)
    return click.option(
        "--config", type=_PATH,
        help=f"The device's configuration.  [default: {DEFAULT_CONFIG}]",
    )(function)  # fmt: skip


def find_place(config: Path | None, state_dir: Path | None) -> Place:
    """The device that the options name.

    Raises:
        click.UsageError: Both are given.
        CommandError: There is none (exit code 78).
        ConfigError: The configuration is wrong.
    """
    if config is not None and state_dir is not None:
        raise click.UsageError("give one of --config and --state-dir")
    if state_dir is not None:
        if not state_dir.is_dir():
            raise CommandError(f"{state_dir} is no folder", exit_code=Exit.CONFIG)
        return Place(state_dir)
    from edgepack_runtime.config import load_config

    path = config or DEFAULT_CONFIG
    if config is None and not path.exists():
        raise CommandError(
            f"there is no {path}; name the device with --config or --state-dir",
            exit_code=Exit.CONFIG,
        )
    found = load_config(path, os.environ)
    return Place(Path(found.state_dir), found, path)
