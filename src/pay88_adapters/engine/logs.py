"""Redaction in the logs of other libraries."""

from __future__ import annotations

import logging
from typing import Any

from pay88_adapters.core.secret import REDACTED, mask
from pay88_adapters.core.token import MANAGED_FIELDS

_HIDDEN = frozenset(name.encode() for name in (*MANAGED_FIELDS, "x-api-key"))


class _HideFields(logging.Filter):
    """Filter for HTTP/2 header compression, which logs names and values, side by side or in pairs, and whole blocks."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            # An encoded block is no cipher: it can be decoded without a key.
            record.args = (REDACTED,) * len(record.args) if "block" in str(record.msg) else _hidden(record.args)
        return True


def _hidden(values: tuple[Any, ...]) -> tuple[Any, ...]:
    shown: list[Any] = []
    for before, value in zip((None, *values), values, strict=False):
        if isinstance(value, tuple):
            shown.append(_hidden(value))  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(before, bytes) and before.lower() in _HIDDEN:
            shown.append(REDACTED.encode())
        else:
            shown.append(value)
    return tuple(shown)


class _HideText(logging.Filter):
    """Filter for httpcore and httpcore2, which log bytes that they cannot parse: perhaps a part of a token response."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = mask(record.getMessage()), ()
        return True


class _HideUnparsed(logging.Filter):
    """Filter for urllib3, which logs headers that it cannot parse, with an exception: perhaps a token response."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            text = record.getMessage()
            masked = mask(text)
            if masked != text:  # the exception has the same text
                record.msg, record.args, record.exc_info, record.exc_text = masked, (), None, None
        return True


_hide_fields, _hide_text, _hide_unparsed = _HideFields(), _HideText(), _HideUnparsed()


def hide_secrets_in_logs() -> None:
    """Redact what the client libraries log. Further calls change nothing."""
    logging.getLogger("urllib3.connection").addFilter(_hide_unparsed)
    for name in ("hpack.hpack", "hpack.table"):
        logging.getLogger(name).addFilter(_hide_fields)
    for library in ("httpcore", "httpcore2"):
        for part in ("connection", "http11", "http2", "proxy"):
            logging.getLogger(f"{library}.{part}").addFilter(_hide_text)
