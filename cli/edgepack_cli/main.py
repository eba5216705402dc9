"""The one command ``edgepack``.

Sub-commands are loaded when they are called, never before, so that a device without the packager's
libraries has a working command line.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from edgepack_cli.errors import Exit, exit_code_of
from edgepack_contract import __version__
from edgepack_contract.errors import EdgepackError

COMMANDS: dict[str, tuple[str, str]] = {
    "audit": ("edgepack_cli.commands.audit", "Look at the audit log, and verify it."),
    "bench": ("edgepack_cli.commands.bench", "Measure a bundle on this machine, or another."),
    "build": ("edgepack_cli.commands.build", "Convert a model, search precisions, write a bundle."),
    "bundle": ("edgepack_cli.commands.bundle", "Push and list bundles, export their models."),
    "context": ("edgepack_cli.commands.context", "Choose among the fleets you are logged in to."),
    "capture": ("edgepack_cli.commands.capture", "What this device has captured."),
    "demo": ("edgepack_cli.commands.demo", "The whole loop on this machine, on real data."),
    "device": ("edgepack_cli.commands.device", "Look at devices, let them in, and put them out."),
    "diff": ("edgepack_cli.commands.diff", "Show what changed between two bundles."),
    "doctor": ("edgepack_cli.commands.doctor", "Check this device: what is wrong, what to do."),
    "enrol": ("edgepack_cli.commands.enrol", "Join a fleet, as a device of it."),
    "fleet": ("edgepack_cli.commands.fleet", "Run the fleet service."),
    "group": ("edgepack_cli.commands.group", "Create and list groups of devices."),
    "healthcheck": ("edgepack_cli.commands.healthcheck", "Ask a daemon whether it is well."),
    "inspect": ("edgepack_cli.commands.inspect", "Show what is in a bundle."),
    "join-token": (
        "edgepack_cli.commands.join_token",
        "Make, list and revoke join tokens of devices.",
    ),
    "keys": ("edgepack_cli.commands.keys", "Make, show and change the keys of a fleet."),
    "local": ("edgepack_cli.commands.local", "Look at this device and change it, with no fleet."),
    "login": ("edgepack_cli.commands.login", "Log in to a fleet service with a token."),
    "logout": ("edgepack_cli.commands.logout", "Forget the token of a fleet service."),
    "oci": ("edgepack_cli.commands.oci", "Push bundles to an OCI registry, and pull them."),
    "predict": ("edgepack_cli.commands.predict", "Score a file of rows with a bundle."),
    "rollout": ("edgepack_cli.commands.rollout", "Roll a bundle out in stages, watch, roll back."),
    "run": ("edgepack_cli.commands.run", "Run the device daemon, or serve one bundle."),
    "selftest": ("edgepack_cli.commands.selftest", "Run a bundle's golden rows on this machine."),
    "sign": ("edgepack_cli.commands.sign", "Sign a bundle with a publisher key."),
    "support-bundle": (
        "edgepack_cli.commands.support_bundle",
        "Pack what is known of this device, with no secrets.",
    ),
    "targets": ("edgepack_cli.commands.targets", "Kinds of hardware to build for."),
    "token": ("edgepack_cli.commands.token", "Make, list and revoke access tokens."),
    "unpack": ("edgepack_cli.commands.unpack", "Write a bundle's files into a folder."),
    "user": ("edgepack_cli.commands.user", "Add, list and reset people who log in to the page."),
    "verify": ("edgepack_cli.commands.verify", "Check a bundle's signature and every digest."),
}
CONTEXT_VARIABLE = "EDGEPACK_CONTEXT"
EXTRAS = {
    "bench": "runtime",
    "build": "packager",
    "capture": "runtime",
    "demo": "demo",
    "diff": "packager",
    "doctor": "runtime",
    "fleet": "fleet",
    "local": "runtime",
    "oci": "packager",
    "predict": "packager",
    "run": "runtime",
    "selftest": "runtime",
    "support-bundle": "runtime",
    "targets": "runtime",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names, without importing anything."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(COMMANDS[cmd_name][0])
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(cmd_name)
            if extra is None or (error.name or "").startswith("edgepack"):
                raise
            raise click.ClickException(
                f"`edgepack {cmd_name}` needs {error.name}; run: pip install 'edgepack[{extra}]'"
            ) from error
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, from the table instead of from every module."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in sorted(COMMANDS.items())])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgepack")
@click.option(
    "--context", metavar="NAME", help="Which fleet you are logged in to.  [EDGEPACK_CONTEXT]"
)
@click.pass_context
def edgepack(ctx: click.Context, context: str | None) -> None:
    """Take a trained model to a fleet of edge devices and keep it healthy there."""
    if context is not None:
        ctx.with_resource(_chosen(context))


@contextlib.contextmanager
def _chosen(name: str) -> Iterator[None]:
    """The context is in the environment for as long as the command runs."""
    before = os.environ.get(CONTEXT_VARIABLE)
    os.environ[CONTEXT_VARIABLE] = name
    try:
        yield
    finally:
        del os.environ[CONTEXT_VARIABLE]
        if before is not None:
            os.environ[CONTEXT_VARIABLE] = before


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with a code of :class:`~edgepack_cli.errors.Exit`."""
    code = run(arguments)
    if code == Exit.INTERRUPTED:
        # threads of libraries, such as pyarrow's, may be at work still; taken down in the middle of
        # it they abort the process
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code; expected errors become one line on stderr."""
    try:
        result: Any = edgepack.main(args=arguments, prog_name="edgepack", standalone_mode=False)
    except EdgepackError as error:
        click.echo(f"error: {error}", err=True)
        return exit_code_of(error)
    except OSError as error:
        # A full disk, a folder that may not be written: the user's machine, not a defect of ours.
        click.echo(f"error: {_os_words(error)}", err=True)
        return Exit.BAD_INPUT
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return Exit.INTERRUPTED
    return result if isinstance(result, int) else Exit.OK


def _os_words(error: OSError) -> str:
    words = error.strerror or str(error)
    return f"{error.filename}: {words}" if error.filename is not None else words
