"""Regular expressions that users write: RE2, as in Prometheus and Alertmanager, matched against whole texts.

The texts come from others (owners of guests, senders of alerts). Python's own engine takes exponential time for some
pairs of expression and text, like (a+)+b and many a's; RE2 takes time in proportion to the text, whatever stands in
either.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

LONGEST_EXPRESSION = 10_000
_MOST_REMEMBERED = 4096


class Expression:
    """One compiled expression. Any thread."""

    def __init__(self, text: str, *, over_lines: bool = True) -> None:
        """`over_lines`: a dot stands for the end of a line, too, as in Prometheus; in Alertmanager it does not.

        Raises ValueError with the cause where `text` is no RE2 expression.
        """
        self.text = text
        self._compiled = _compiled(text, over_lines)
        # The same names come at each sample; a call of RE2 from Python takes some microseconds.
        self.fullmatch = lru_cache(_MOST_REMEMBERED)(self._fullmatch)

    def _fullmatch(self, text: str, /) -> bool:
        # JSON can hold halves of surrogate pairs, which no UTF-8 has.
        return self._compiled.fullmatch(text.encode("utf-8", "replace").decode()) is not None


def _compiled(text: str, over_lines: bool) -> Any:
    import re2

    if len(text) > LONGEST_EXPRESSION:
        raise ValueError(f"it is longer than {LONGEST_EXPRESSION} characters")
    options = re2.Options()
    options.log_errors = False
    options.dot_nl = over_lines
    try:
        return re2.compile(text, options=options)
    except re2.error as error:
        (said,) = error.args or ("",)
        cause = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(cause[:200]) from None
    except UnicodeEncodeError:
        raise ValueError("it holds a character that is none") from None
