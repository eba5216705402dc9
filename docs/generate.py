#!/usr/bin/env python3
"""Write what follows from the code: docs/cli.md, configuration.md, report.md, parts of protocol.md.

``python docs/generate.py`` writes them; with ``--check`` it only says which are out of date. In
protocol.md the text between ``<!-- generated: NAME -->`` and ``<!-- end -->`` is replaced.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import inspect as shapes

from edgepack_cli.errors import Exit
from edgepack_cli.main import edgepack
from edgepack_contract import description, hardware, latency, messages, window
from edgepack_contract.limits import KIB, LIMITS
from edgepack_contract.topics import NAMED, RETAINED, ROOT, UP, Kind
from edgepack_fleet.config import FleetConfig
from edgepack_packager.report import schema
from edgepack_runtime.config import RuntimeConfig

DOCS = Path(__file__).parent
SETTINGS: dict[str, Any] = {"terminal_width": 100, "help_option_names": ["-h", "--help"]}
MESSAGES: dict[Kind, tuple[type[msgspec.Struct], int]] = {
    Kind.STATE: (messages.State, 1),
    Kind.BIRTH: (messages.Birth, 1),
    Kind.REPORTED: (messages.Reported, 1),
    Kind.DESIRED: (messages.Desired, 1),
    Kind.TELEMETRY: (window.Window, 1),
    Kind.ACKED: (messages.Acked, 1),
    Kind.HEALTH: (messages.Health, 0),
    Kind.EVENT: (messages.Event, 1),
    Kind.CMD: (messages.Command, 1),
    Kind.ACK: (messages.CommandReply, 1),
    Kind.REQUEST: (messages.Request, 1),
    Kind.RESPONSE: (messages.Response, 1),
}
NAMES = {
    Kind.TELEMETRY: "{slot}", Kind.ACKED: "{slot}", Kind.EVENT: "{kind}", Kind.CMD: "{verb}",
    Kind.ACK: "{verb}", Kind.REQUEST: "{slot}", Kind.RESPONSE: "{name}",
}  # fmt: skip
STRUCTS: list[type[msgspec.Struct]] = [
    messages.State, messages.Birth, messages.SlotBirth, hardware.Hardware, messages.Reported,
    messages.SlotReported, messages.CandidateReported, messages.Desired, messages.SlotDesired,
    messages.Ref, messages.Candidate, messages.Probation, window.Window, window.InputColumns,
    window.OutputColumns, window.Pairs, window.Differences, latency.LatencyColumns, messages.Acked,
    messages.Health,
    messages.Event, messages.Command, messages.CommandReply, messages.Request, messages.Response,
    messages.FleetState,
]  # fmt: skip
BOUNDS = ("desired_bytes", "message_bytes", "keyring_bytes", "json_depth")


def topics_table() -> str:
    """Every topic, which way it goes, and what is said on it."""
    rows = ["| topic | way | QoS | retained | message |", "|---|---|---|---|---|"]
    for kind, (struct, qos) in MESSAGES.items():
        topic = f"{kind}/{NAMES[kind]}" if kind in NAMED else str(kind)
        way = "up" if kind in UP else "down"
        kept = "yes" if kind in RETAINED else "no"
        rows.append(f"| `{topic}` | {way} | {qos} | {kept} | {_link(struct)} |")
    fleet = f"`{ROOT}/{{tenant}}/_fleet/state`"
    rows.append(f"| {fleet} | fleet | 1 | yes | {_link(messages.FleetState)} |")
    keyring = f"`{ROOT}/{{tenant}}/_fleet/keyring`"
    rows.append(f"| {keyring} | fleet | 1 | yes | the keyring file |")
    return "\n".join(rows)


def messages_reference() -> str:
    """Every message and every part of one, with its fields."""
    return "\n\n".join(_struct(struct) for struct in STRUCTS)


def limits_table() -> str:
    """The bounds of what is read from the broker."""
    words = {field.name: getattr(LIMITS, field.name) for field in dataclasses.fields(LIMITS)}
    rows = ["| limit | value |", "|---|---|"]
    for name in BOUNDS:
        value = f"{words[name] // KIB} KiB" if name.endswith("_bytes") else str(words[name])
        rows.append(f"| `{name}` | {value} |")
    return "\n".join(rows)


def _struct(struct: type[msgspec.Struct]) -> str:
    info = shapes.type_info(struct)
    assert isinstance(info, shapes.StructType)  # noqa: S101 - narrows for the type checker
    rows = ["| field | type | when absent |", "|---|---|---|"]
    for field in info.fields:
        absent = "refused" if field.required else _default(field)
        rows.append(f"| `{field.encode_name}` | {_type(field.type)} | {absent} |")
    return f"### {struct.__name__}\n\n{_prose(struct)}\n\n" + "\n".join(rows)


def _prose(struct: type[msgspec.Struct]) -> str:
    """The docstring, and what a base class says of the fields that come from it."""
    texts = [
        inspect.cleandoc(kind.__doc__)
        for kind in struct.__mro__
        if issubclass(kind, msgspec.Struct) and kind.__doc__ and _has_fields(kind)
    ]
    text = "\n\n".join(texts)
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    return re.sub(r"^Attributes:\n((?:    .*\n?)+)", _attributes, text, flags=re.MULTILINE)


def _has_fields(kind: type[msgspec.Struct]) -> bool:
    return bool(kind.__struct_fields__)


def _attributes(match: re.Match[str]) -> str:
    text = re.sub(r"\n\s{8,}", " ", match[1])
    return re.sub(r"^    (\w+): ", r"* `\1`: ", text, flags=re.MULTILINE)


def _default(field: shapes.Field) -> str:
    value: Any = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if isinstance(value, msgspec.Struct):
        return "its defaults"
    return f"`{msgspec.json.encode(value).decode()}`"


def _type(kind: Any) -> str:
    match kind:
        case shapes.UnionType(types=types):
            return " or ".join(_type(one) for one in types)
        case shapes.ListType(item_type=item):
            return f"list of {_type(item)}"
        case shapes.VarTupleType(item_type=item):
            return f"list of {_type(item)}"
        case shapes.DictType(key_type=key, value_type=value):
            return f"map of {_type(key)} to {_type(value)}"
        case shapes.StructType(cls=struct):
            return _link(struct)
        case shapes.EnumType(cls=enum):
            return " ".join(f"`{one.value}`" for one in enum)
        case shapes.LiteralType(values=values):
            return " ".join(f"`{one}`" for one in values)
        case _:
            return _scalar(kind)


def _scalar(kind: Any) -> str:
    words: dict[Any, str] = {
        shapes.IntType: "integer", shapes.FloatType: "number", shapes.StrType: "text",
        shapes.BoolType: "true or false", shapes.NoneType: "null", shapes.AnyType: "anything",
        shapes.RawType: "anything",
    }  # fmt: skip
    bounds = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=",
              "max_length": "length <="}  # fmt: skip
    told = [
        f"{sign} {_number(limit)}"
        for name, sign in bounds.items()
        if (limit := getattr(kind, name, None)) is not None
    ]
    return " ".join([words[type(kind)], *told])


def _number(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2^{power}" if value > 2**20 and value == 2**power else f"{value:g}"


def _link(struct: type[msgspec.Struct]) -> str:
    return f"[{struct.__name__}](#{struct.__name__.lower()})"


GENERATED = {"topics": topics_table, "messages": messages_reference, "limits": limits_table}


def protocol(text: str) -> str:
    """The text of protocol.md with its generated parts made anew."""

    def fresh(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{GENERATED[match[2]]()}\n\n<!-- end -->"

    return re.sub(r"(<!-- generated: (\w+) -->).*?<!-- end -->", fresh, text, flags=re.DOTALL)


CONFIGURATION_HEAD = """\
# Configuration

Generated from the code by `python docs/generate.py`.

Both services read one TOML file; relative paths are relative to its folder. An unknown key is
refused by name. An environment variable overrides a key: `http.port` of the service is
`EDGEPACK_FLEET_HTTP_PORT`, `serve.port` of a device `EDGEPACK_SERVE_PORT`.

What would be insecure off loopback is refused at the start (exit code 78), all of it at once, each
with the command that mends it. `EDGEPACK_ALLOW_INSECURE="reason"` starts all the same, says so in
the log, the metrics and the page for as long as it runs, and never lets a demo's keys off loopback.
"""


def configuration() -> str:
    """The text of configuration.md: every table of both services."""
    device = _tables("The device", "`edgepack run --config device.toml`", RuntimeConfig)
    fleet = _tables("The fleet service", "`edgepack fleet serve --config fleet.toml`", FleetConfig)
    return "\n\n".join([CONFIGURATION_HEAD.rstrip(), fleet, device]) + "\n"


def _tables(title: str, command: str, root: type[msgspec.Struct]) -> str:
    nested = {
        field.encode_name: field.type.cls
        for field in _fields(root)
        if isinstance(field.type, shapes.StructType)
    }
    parts = [f"## {title}\n\n{command}", _settings(root)]
    for name, struct in nested.items():
        parts.append(f"### [{name}]\n\n{_prose(struct)}\n\n{_settings(struct)}")
    return "\n\n".join(parts)


def _settings(struct: type[msgspec.Struct]) -> str:
    rows = ["| key | value | when absent |", "|---|---|---|"]
    for field in _fields(struct):
        if isinstance(field.type, shapes.StructType):
            continue
        absent = "refused" if field.required else _default(field)
        absent = "" if absent == "`null`" else absent
        told = _type(field.type).removesuffix(" or null")
        rows.append(f"| `{field.encode_name}` | {told} | {absent} |")
    return "\n".join(rows)


def _fields(struct: type[msgspec.Struct]) -> tuple[shapes.Field, ...]:
    info = shapes.type_info(struct)
    assert isinstance(info, shapes.StructType)  # noqa: S101 - narrows for the type checker
    return info.fields


REPORT_HEAD = """\
# The report of a build

Generated from the code by `python docs/generate.py`.

`edgepack build` puts three files into a bundle as its evidence, beside the identity and never under
it: `report.html`, one page for people that needs nothing else; `report.json`, the same for
programs; and `sbom.cdx.json`, a CycloneDX 1.6 bill of materials with a model card. `edgepack
inspect BUNDLE --evidence FOLDER` writes them out; `edgepack build --report FILE` writes the page
beside the bundle.

This is `report.json`, schema `edgepack-report/1`. Fields may be added, none changes its meaning.
"""
REPORT: list[type[msgspec.Struct]] = [
    schema.Report, schema.BundleName, schema.SourceFacts, schema.DataFacts, schema.TargetReport,
    schema.CandidateReport, schema.LatencyReport, schema.Interval, schema.GateReport,
    schema.SliceReport, schema.WorstReport, schema.ConfusionReport, schema.LayerReport,
    schema.Repeat, description.Metric, hardware.Hardware,
]  # fmt: skip


def report() -> str:
    """The text of report.md: every part of report.json."""
    return "\n\n".join([REPORT_HEAD.rstrip(), *(_struct(struct) for struct in REPORT)]) + "\n"


CLI_HEAD = """\
# Commands

Generated from the commands by `python docs/generate.py`.

Results go to stdout, everything else to stderr; with `--json` stdout is one JSON object. Commands
that talk to the fleet use the context of `edgepack login`. `EDGEPACK_FLEET` (its address, by
default `http://127.0.0.1:8080`) and `EDGEPACK_TOKEN`, or `EDGEPACK_TOKEN_FILE` (a file that holds
the token), come first.
"""
EXIT_WORDS = {
    Exit.OK: "done",
    Exit.INTERNAL: "a defect of edgepack, a missing extra, or a demo that did not come true",
    Exit.USAGE: "wrong usage",
    Exit.BAD_INPUT: "bad input, or the fleet refused or does not answer",
    Exit.ACCURACY: "no candidate is inside the accuracy gates",
    Exit.BUDGET: "no candidate is inside the budgets",
    Exit.VERIFICATION: "a bundle, keyring or document does not verify",
    Exit.INCOMPATIBLE: "genuine, but not for this machine or this version of edgepack",
    Exit.PAUSED: "the watched rollout is paused",
    Exit.ROLLED_BACK: "the watched rollout failed or was rolled back",
    Exit.TIMED_OUT: "the watched rollout has not ended in time",
    Exit.CONFIG: "a setting is unknown, missing or out of range",
    Exit.INTERRUPTED: "interrupted",
}


def cli() -> str:
    """The text of cli.md: exit codes, and the help of every command."""
    rows = [f"| {code.value} | {EXIT_WORDS[code]} |" for code in Exit]
    exits = "\n".join(["| exit code | meaning |", "|---|---|", *rows])
    root = click.Context(edgepack, info_name="edgepack", **SETTINGS)
    parts = [f"## {one.command_path}\n\n```text\n{one.get_help()}\n```" for one in _contexts(root)]
    return "\n\n".join([CLI_HEAD.rstrip(), exits, *parts]) + "\n"


def _contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None:
                yield from _contexts(
                    click.Context(command, parent=context, info_name=name, **SETTINGS)
                )


def main(arguments: list[str]) -> int:
    """Write what is out of date, or with ``--check`` only name it; 1 when something was."""
    path = DOCS / "protocol.md"
    fresh = {
        DOCS / "cli.md": cli(),
        DOCS / "configuration.md": configuration(),
        DOCS / "report.md": report(),
        path: protocol(path.read_text(encoding="utf-8")),
    }
    stale = [
        path
        for path, text in fresh.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        sys.stdout.write(f"{path.name} is out of date\n")
        if arguments != ["--check"]:
            path.write_text(fresh[path], encoding="utf-8")
    return 1 if stale and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
