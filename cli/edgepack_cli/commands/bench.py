"""``edgepack bench``: how fast are the variants of a bundle on a device?"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack_cli.errors import Exit
from edgepack_cli.output import bytes_text, emit_json, note, say, table
from edgepack_cli.stopping import stoppable
from edgepack_cli.trust import FILE, read_keyring, trust_options
from edgepack_contract.benchmark import Benchmark, VariantBench
from edgepack_contract.bundle import open_bundle
from edgepack_contract.hardware import this_machine
from edgepack_contract.unpacked import open_local
from edgepack_contract.variants import alternatives, select_variant
from edgepack_runtime.inference.benchmark import (
    Settings,
    benchmark,
    named_variant,
    try_variants,
)

if TYPE_CHECKING:
    from edgepack_contract.keyring import Keyring


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--variant", help="This one; default: the best for this machine and its like.")
@click.option("--all-variants", is_flag=True, help="Every variant that fits this machine.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, show_default=True,
              help="How often each is measured; the quietest round counts.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True,
              help="Of a session, where the bundle leaves them to the device.")  # fmt: skip
@click.option("--on", "remote", metavar="ssh://[USER@]HOST[:PORT]", help="Measure there instead.")
@click.option("--remote-command", default="edgepack", show_default=True,
              help="With --on: how edgepack is called there.")  # fmt: skip
@click.option("--ssh-config", type=FILE, help="With --on: a configuration file for ssh.")
@click.option("--timeout", type=click.IntRange(1, 86400), default=1800, show_default=True,
              help="With --on: seconds after which it is given up.")  # fmt: skip
@trust_options(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for --measured.")
def command(
    bundle: Path, *, variant: str | None, all_variants: bool, rounds: int, threads: int,
    remote: str | None, remote_command: str, ssh_config: Path | None, timeout: int,
    keyring: Path | None, owner: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Check golden rows and measure latency, loading and memory of BUNDLE, a file or its folder.

    Each variant runs in a child, one after the other. What --json prints feeds
    `edgepack build --measured`.

    Exit codes: 5 every one is over its budget, 6 wrong golden rows, 7 none runs here.

    Example: edgepack bench churn-1.4.0.edgepack --on ssh://pi@board.example --json
    """
    if variant is not None and all_variants:
        raise click.UsageError("give either --variant or --all-variants")
    trusted = read_keyring(keyring, owner)
    settings = Settings(threads=threads, rounds=rounds)
    if remote is None:
        with stoppable():
            found = _here(bundle, trusted, settings, variant=variant, everything=all_variants)
    else:
        from edgepack_cli.remote import RemoteShell, bench_there

        _checked(bundle, trusted)
        shell = RemoteShell.parse(remote, command=remote_command, config=ssh_config)
        chosen = ["--all-variants"] if all_variants else []
        chosen += ["--variant", variant] if variant is not None else []
        options = [*chosen, "--rounds", str(rounds), "--threads", str(threads)]
        note(f"measuring on {shell.host}")
        found = bench_there(shell, bundle, options, timeout_s=timeout)
    if as_json:
        emit_json(found)
    else:
        say(render(found))
    return exit_code(found)


def render(found: Benchmark) -> str:
    """The figures for people."""
    host = found.host
    cores = f"{host.cores} core{'s' if host.cores != 1 else ''}"
    head = (
        f"{found.name} {found.version} on {host.model} ({host.architecture}, {cores}), "
        f"onnxruntime {host.onnxruntime}, {found.threads} thread{'s' if found.threads > 1 else ''}"
    )
    headings = ("VARIANT", "P50", "P95", "P99", "LOAD", "PEAK", "GOLDEN")
    lines = [head, table(headings, [_row(one) for one in found.variants])]
    lines += [f"{one.variant}: {one.words}" for one in found.variants if one.words]
    return "\n".join(lines)


def exit_code(found: Benchmark) -> Exit:
    """Wrong golden rows before all else; then whether anything ran, and inside its budget."""
    codes = {one.code for one in found.variants}
    if "golden-mismatch" in codes:
        return Exit.VERIFICATION
    if "" in codes:
        return Exit.OK
    over = any(one.p95_ms is not None for one in found.variants)
    return Exit.BUDGET if over else Exit.INCOMPATIBLE


def _row(one: VariantBench) -> tuple[str, ...]:
    times = (one.p50_ms, one.p95_ms, one.p99_ms, one.load_ms)
    peak = "-" if one.peak_bytes is None else bytes_text(one.peak_bytes)
    golden = f"{one.rows} right" if one.rows else one.code
    return (one.variant, *("-" if ms is None else f"{ms:.3g} ms" for ms in times), peak, golden)


def _here(
    path: Path, keyring: Keyring | None, settings: Settings, *, variant: str | None,
    everything: bool,
) -> Benchmark:  # fmt: skip
    host = this_machine(onnxruntime=importlib.metadata.version("onnxruntime"))
    with open_local(path) as source:
        bundle = open_bundle(source, source.digest, keyring=keyring)
        if variant is not None:
            variants = [named_variant(bundle.index, host, variant)]
        elif everything:
            variants = select_variant(bundle.index, host)
        else:
            variants = alternatives(bundle.index, host)
        attempts = try_variants(bundle, source, variants, settings, _tell)
    return benchmark(bundle, attempts, host, settings)


def _checked(path: Path, keyring: Keyring | None) -> None:
    """What is not a bundle, or not signed as required, is not sent anywhere."""
    if path.is_dir():
        raise click.UsageError("--on takes a bundle file, not a folder")
    with open_local(path) as source:
        open_bundle(source, source.digest, keyring=keyring)


def _tell(variant: str) -> None:
    if sys.stderr.isatty():
        note(f"measuring {variant}")
