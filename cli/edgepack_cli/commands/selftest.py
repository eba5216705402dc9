"""``edgepack selftest``: does a bundle answer on this machine as it did where it was built?"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import click

from edgepack_cli.errors import Exit
from edgepack_cli.output import emit_json, say
from edgepack_cli.trust import read_keyring, trust_options
from edgepack_contract.bundle import open_bundle
from edgepack_contract.hardware import this_machine
from edgepack_contract.unpacked import open_local
from edgepack_contract.variants import select_variant
from edgepack_runtime.inference.benchmark import Attempt, Settings, named_variant, try_variants


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--variant", help="This one; default: the one that this machine would run.")
@click.option("--all-variants", is_flag=True, help="Every variant that fits this machine.")
@trust_options(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: Path, *, variant: str | None, all_variants: bool,
    keyring: Path | None, owner: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Run the golden rows of BUNDLE, a file or the folder that `unpack` wrote, on this machine.

    Exit codes: 6 an answer is wrong, or the bundle is; 7 no variant fits, or it does not load.

    Example: edgepack selftest churn-1.4.0.edgepack
    """
    if variant is not None and all_variants:
        raise click.UsageError("give either --variant or --all-variants")
    host = this_machine(onnxruntime=importlib.metadata.version("onnxruntime"))
    with open_local(bundle) as source:
        opened = open_bundle(source, source.digest, keyring=read_keyring(keyring, owner))
        if variant is not None:
            chosen = [named_variant(opened.index, host, variant)]
        else:
            chosen = select_variant(opened.index, host)[: None if all_variants else 1]
        attempts = try_variants(opened, source, chosen, Settings(rounds=0), lambda _: None)
    if as_json:
        emit_json({"name": opened.name, "version": opened.version, "digest": opened.digest,
                   "variants": [_plain(attempt) for attempt in attempts]})  # fmt: skip
    else:
        for attempt in attempts:
            say(_words(attempt))
    return exit_code(attempts)


def exit_code(attempts: list[Attempt]) -> Exit:
    """A wrong answer before all else, then a model that does not load or run."""
    codes = {attempt.result.code for attempt in attempts}
    if "golden-mismatch" in codes:
        return Exit.VERIFICATION
    return Exit.INCOMPATIBLE if codes - {""} else Exit.OK


def _words(attempt: Attempt) -> str:
    name, result = attempt.variant.variant.name, attempt.result
    if result.ok:
        return f"{name}: {result.rows} golden rows are right ({attempt.precision})"
    return f"{name}: {result.code}: {result.words}"


def _plain(attempt: Attempt) -> dict[str, object]:
    result = attempt.result
    return {
        "variant": attempt.variant.variant.name,
        "precision": attempt.precision,
        "ok": result.ok,
        "code": result.code,
        "words": result.words,
        "rows": result.rows,
    }
