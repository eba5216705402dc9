"""Documents cannot rot: what follows from the code is generated, and the rest names every name."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgepack_cli.main import COMMANDS
from edgepack_contract import instructions, messages, sealing, states, topics, window
from edgepack_contract.dsse import PayloadType
from edgepack_fleet import hearing, ingest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([^`\n]+)`", PROTOCOL))
CODE = re.compile(r'code="([a-z-]+)"')


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


GENERATE = load_generator()


def test_generated_documents_are_up_to_date():
    run = [sys.executable, str(DOCS / "generate.py"), "--check"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run: python docs/generate.py"


def test_the_check_sees_a_document_that_is_out_of_date():
    stale = re.sub(r"\| `session` \| integer.*\n", "", PROTOCOL)
    assert stale != PROTOCOL
    assert GENERATE.protocol(stale) == PROTOCOL


def structs_of(module):
    return {
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__module__ == module.__name__
        and not kind.__name__.startswith("_")
    }


@pytest.mark.parametrize("module", [messages, window])
def test_every_message_and_field_is_documented(module):
    structs = structs_of(module) - {window.WindowBody}
    assert len(structs) >= 4
    assert structs <= set(GENERATE.STRUCTS)
    for struct in structs:
        section = PROTOCOL.split(f"### {struct.__name__}\n")[1].split("\n### ")[0]
        fields = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert fields == [field.encode_name for field in msgspec.structs.fields(struct)]


def test_every_topic_is_documented_with_its_message():
    assert set(GENERATE.MESSAGES) == set(topics.Kind)
    assert {struct for struct, _ in GENERATE.MESSAGES.values()} <= set(GENERATE.STRUCTS)
    assert GENERATE.NAMES.keys() == topics.NAMED


def test_only_health_may_get_lost():
    lossy = [kind for kind, (_, qos) in GENERATE.MESSAGES.items() if qos == 0]
    assert lossy == [topics.Kind.HEALTH]


@pytest.mark.parametrize("module", [instructions, sealing])
def test_every_reason_to_refuse_is_documented(module):
    codes = set(CODE.findall(inspect.getsource(module)))
    assert codes
    assert codes <= NAMED


def test_every_name_under_which_the_fleet_counts_a_refusal_is_documented():
    source = inspect.getsource(ingest) + inspect.getsource(hearing)
    names = set(re.findall(r'(?:Refused|SecondHolder)\("([a-z-]+)"\)', source)) | set(
        CODE.findall(source)
    )
    assert {"old-session", "repeated", "unknown-device", "clone"} <= names
    assert names <= NAMED


@pytest.mark.parametrize(
    "names",
    [states.Presence, states.Phase, states.UpdateState, states.RolloutState, states.StageState,
     states.Verdict],
)  # fmt: skip
def test_every_state_is_documented(names):
    assert {one.value for one in names} <= NAMED


def test_the_table_of_phases_has_each_once():
    table = PROTOCOL.split("| phase | meaning | then |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", table, re.MULTILINE)
    assert sorted(phase for phase, _ in rows) == sorted(states.Phase)
    assert {then for _, cell in rows for then in re.findall(r"`(\w+)`", cell)} < set(states.Phase)


def test_payload_type_and_skew_are_those_of_the_code():
    assert PayloadType.DESIRED.value in NAMED
    assert f"{instructions.CLOCK_SKEW_MS // 60_000} minutes ahead" in PROTOCOL
    assert f"{sealing.MAC_KEY_BYTES}-byte key" in PROTOCOL


def test_every_command_is_documented():
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert all(f"\n## edgepack {name}\n" in text for name in COMMANDS)


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_links_of_documents_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#:\s]+)\)", path.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (path.parent / target).exists()]
