"""The one command: its list, its help, its errors and its exit codes."""

from __future__ import annotations

import importlib
import subprocess
import sys

import click
import pytest

from edgepack_cli import main as main_module
from edgepack_cli.main import COMMANDS, EXTRAS, edgepack, run
from edgepack_contract import __version__
from edgepack_contract.errors import MalformedBundleError


def leaves(command=edgepack, path=()):
    """Every command that does something, with the words that call it."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    names = command.list_commands(context)
    found = [(name, command.get_command(context, name)) for name in names]
    return [leaf for name, child in found for leaf in leaves(child, (*path, name))]


LEAVES = leaves()
IDS = [" ".join(path) for path, _ in LEAVES]


def test_the_list_of_commands_needs_none_of_them():
    code = "import sys; from edgepack_cli.main import run; run(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert not [name for name in modules if name.startswith("edgepack_cli.commands")]
    assert not modules & {"edgepack_packager", "edgepack_runtime", "edgepack_fleet", "numpy"}
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_every_module_of_a_command_is_in_the_list(cli):
    import edgepack_cli.commands as package

    (folder,) = package.__path__
    files = {
        path.stem.replace("_", "-") for path in importlib.resources.files(package).iterdir()
    } - {"--init--"}
    assert folder
    assert files - {"--pycache--"} == set(COMMANDS)
    assert set(EXTRAS) <= set(COMMANDS)


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=IDS)
def test_every_command_has_help_with_an_example(cli, path, command):
    ended = cli(*path, "--help")
    assert ended.code == 0
    assert f"edgepack {' '.join(path)}" in ended.out.split("Example", 1)[1]
    assert len(ended.out.split("Example")[0].splitlines()) > 2


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=IDS)
def test_every_option_says_what_it_is_for(path, command):
    silent = [one.name for one in command.params if isinstance(one, click.Option) and not one.help]
    assert not silent


def test_help_is_short_too(cli):
    assert cli("-h").out == cli("--help").out


def test_version(cli):
    ended = cli("--version")
    assert (ended.code, ended.out) == (0, f"edgepack, version {__version__}\n")


def test_nothing_is_a_question_for_help(cli):
    ended = cli()
    assert ended.code == 2
    assert "Commands:" in ended.out + ended.err


@pytest.mark.parametrize(
    "words", [["deploy"], ["rollout", "undo"], ["verify"], ["keys", "init"], ["run", "--nonsense"]]
)
def test_wrong_usage_is_exit_code_2(cli, words):
    ended = cli(*words)
    assert ended.code == 2
    assert ended.out == ""
    assert "Error: " in ended.err


def test_a_missing_library_names_the_extra(cli, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr(main_module.importlib, "import_module", absent)
    ended = cli("build", "--help")
    assert ended.code == 1
    assert ended.err == (
        "Error: `edgepack build` needs onnx; run: pip install 'edgepack[packager]'\n"
    )


@pytest.mark.parametrize(("name", "absent"), [("keys", "click"), ("build", "edgepack_packager")])
def test_a_broken_installation_is_not_taken_for_a_missing_extra(monkeypatch, name, absent):
    def broken(module):
        raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)

    monkeypatch.setattr(main_module.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        run([name, "--help"])


def failing(monkeypatch, error):
    @click.command()
    def command():
        raise error

    monkeypatch.setattr(main_module.edgepack, "get_command", lambda *_: command)


def test_an_error_on_purpose_is_one_line(cli, monkeypatch):
    failing(monkeypatch, MalformedBundleError("the bundle is cut off; fetch it again"))
    ended = cli("verify")
    assert (ended.code, ended.out) == (6, "")
    assert ended.err == "error: the bundle is cut off; fetch it again\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_is_130(cli, monkeypatch, error):
    failing(monkeypatch, error)
    ended = cli("verify")
    assert (ended.code, ended.err.strip()) == (130, "interrupted")


def test_a_file_that_cannot_be_written_is_one_line(cli, monkeypatch):
    failing(monkeypatch, OSError(28, "No space left on device", "/x/y.edgepack"))
    ended = cli("build")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == "error: /x/y.edgepack: No space left on device\n"


def test_the_module_is_the_command():
    run = [sys.executable, "-m", "edgepack_cli", "rollout", "undo"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such command 'undo'" in done.stderr
