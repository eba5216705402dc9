"""Every error that the contract raises, in one screen, grouped by who is to blame.

A *programming* error is a plain ``ValueError`` or ``TypeError``. Everything below is somebody's
bytes, keys or configuration, and carries a stable ``code`` that tests, reports and operators use.
"""

from __future__ import annotations


class EdgepackError(Exception):
    """The root of all errors that edgepack raises on purpose.

    Args:
        message: What was wrong, what was expected, and what to do about it.
        code: A stable, lower-case, hyphenated name of the rule that was broken.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code


class BundleError(EdgepackError):
    """Something is wrong with a bundle."""

    default_code = "bundle"


class MalformedBundleError(BundleError):
    """The bytes do not follow the format: truncated, altered, or written by something else."""

    default_code = "malformed-bundle"


class UntrustedBundleError(BundleError):
    """The bytes are well formed, but no key of the keyring vouches for them."""

    default_code = "untrusted-bundle"


class UnsupportedBundleError(BundleError):
    """The bundle is genuine, but not for this machine or this version of edgepack."""

    default_code = "unsupported-bundle"


class DocumentError(EdgepackError):
    """Something is wrong with a signed document or a message."""

    default_code = "document"


class MalformedDocumentError(DocumentError):
    """A document or message does not decode, is too large, or has fields out of range."""

    default_code = "malformed-document"


class UntrustedDocumentError(DocumentError):
    """A signature, MAC, recipient or generation does not hold."""

    default_code = "untrusted-document"


class SigningKeyError(EdgepackError):
    """A key file cannot be read, decrypted or used."""

    default_code = "key"


class SourceError(EdgepackError):
    """A place that bundles are fetched from does not answer, or not with what it should."""

    default_code = "source"


class ConfigError(EdgepackError):
    """A configuration has an unknown key, a wrong type, or a value out of range."""

    default_code = "config"
