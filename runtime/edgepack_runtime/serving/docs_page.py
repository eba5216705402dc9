"""``/docs``: the OpenAPI document as a page that needs no network and runs no script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgepack_runtime.serving.markup import escaped

_STYLE = (
    "body{font:16px/1.5 system-ui;margin:2rem auto;max-width:60rem;padding:0 1rem;"
    "color-scheme:light dark}code,pre{font:14px/1.4 ui-monospace,monospace}"
    "pre{overflow:auto;padding:.6rem;border:1px solid #8886;border-radius:4px}"
    "summary{cursor:pointer;padding:.3rem 0}summary b{display:inline-block;width:4rem}"
)


def page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document, readable."""
    info = document["info"]
    operations = "".join(
        _operation(path, method, operation, document["components"]["responses"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{escaped(info['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{escaped(info['title'])} {escaped(info['version'])}</h1>"
        f"<p>{escaped(info['description'])}</p>"
        "<p><a href=/openapi.json>openapi.json</a> · <a href=/>status</a></p>"
        f"{operations}</html>"
    )


def _operation(
    path: str, method: str, operation: Mapping[str, Any], shared: Mapping[str, Any]
) -> str:
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escaped(path)}</code> "
        f"{escaped(operation['summary'])}</summary>"
        f"<p>{escaped(operation.get('description', ''))}</p>"
        f"{_parameters(operation)}{_body(operation)}{_responses(operation, shared)}</details>"
    )


def _parameters(operation: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li><code>{escaped(one['name'])}</code> ({escaped(one['in'])}): "
        f"{escaped(one.get('description', ''))}</li>"
        for one in operation.get("parameters", [])
    )
    return f"<ul>{items}</ul>" if items else ""


def _body(operation: Mapping[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    examples = content.get("application/json", {}).get("examples", {})
    return "".join(
        f"<p>{escaped(name)}</p><pre>{_json(example['value'])}</pre>"
        for name, example in examples.items()
    )


def _responses(operation: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li><b>{escaped(status)}</b> {escaped(_followed(response, shared)['description'])}</li>"
        for status, response in operation["responses"].items()
    )
    return f"<ul>{items}</ul>"


def _followed(response: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = response.get("$ref")
    followed: Mapping[str, Any] = shared[reference.rpartition("/")[2]] if reference else response
    return followed


def _json(value: object) -> str:
    return escaped(json.dumps(value, ensure_ascii=False))
