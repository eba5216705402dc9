"""What two parts of edgepack must agree on byte for byte.

A thing belongs here only if two of packager, runtime and fleet must agree on it, or verify it:
the bundle format, messages and topics, states, and the statistics that are added up. Importing
any module of this package does nothing.
"""

__version__ = "0.1.0"
