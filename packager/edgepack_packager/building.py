"""One build from beginning to end: load, clean, search, describe, write, sign, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack_contract.atomic import replacing
from edgepack_contract.canonical import canonical_json
from edgepack_contract.description import DESCRIPTION_PATH, FileEntry
from edgepack_contract.digest import sha256_digest
from edgepack_contract.errors import MalformedBundleError
from edgepack_contract.keys import PrivateKey, read_private_key
from edgepack_contract.layout import BundleContent, VariantContent, write_bundle
from edgepack_runtime.inference.errors import ModelError
from edgepack_runtime.inference.probe import probe_model

from edgepack_packager.describe import Chosen, describe, previous_reference
from edgepack_packager.errors import ConversionError, InputError, LockError
from edgepack_packager.lock import (
    Lock,
    LockedTarget,
    check_lock,
    read_lock,
    tool_versions,
    write_lock,
)
from edgepack_packager.recipe import Recipe
from edgepack_packager.report import BuildResult, report_of, table_of, to_html, to_json
from edgepack_packager.search import (
    Bench,
    Outcome,
    Trial,
    budgets_for,
    clocked_verdicts,
    declared_gates,
)
from edgepack_packager.subject import Subject, load_subject
from edgepack_packager.targets import DeviceConfig, default_target, load_target, this_hardware
