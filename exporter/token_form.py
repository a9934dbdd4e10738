"""What a bearer token looks like: `vgt_ID_SECRET`. Apart from `exporter.tokens`, since every log line needs it."""

from __future__ import annotations

import re

PREFIX = "vgt"
TOKEN = re.compile(rf"{PREFIX}_[0-9a-f]{{12}}_[A-Za-z0-9_-]{{20,128}}")
_TOKEN_SECRET = re.compile(rf"({PREFIX}_[0-9a-f]{{12}}_)[A-Za-z0-9_-]{{20,}}")


def mask_tokens(text: str) -> str:
    """`text` with the secrets of tokens as ***; their ids stay. For what strangers put where no token belongs."""
    return _TOKEN_SECRET.sub(r"\1***", text)
