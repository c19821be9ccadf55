"""Connection strings without their secrets, for messages and lists."""

from __future__ import annotations

import re

_SECRETS = "password|sslpassword|oauth_client_secret|scram_client_key|scram_server_key"
_IN_AUTHORITY = re.compile(r"(\w+://[^:@/?#\s]*):.*@", re.DOTALL)
_IN_QUERY = re.compile(rf"([?&](?:{_SECRETS})=)[^&\s]*")
_IN_PAIRS = re.compile(rf"(?<![\w?&])((?:{_SECRETS})\s*=\s*)(?:'(?:[^'\\]|\\.)*'?|(?:\\.|[^\s'\\])+)", re.DOTALL)


def redact_dsn(dsn: str) -> str:
    """A connection string with `***` for every secret in it; the user, host and database stay legible.

    Takes both forms, URI and `key=value`. Where a URI is malformed it hides more rather than less. Source of
    the forms: the libpq manual, "Connection Strings".
    """
    dsn = _IN_AUTHORITY.sub(r"\1:***@", dsn)
    dsn = _IN_QUERY.sub(r"\1***", dsn)
    return _IN_PAIRS.sub(r"\1***", dsn)
