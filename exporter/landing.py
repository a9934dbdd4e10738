"""The page at `/`: what this is and where its pages are, for a person who typed the host's name and port."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{name}</title>
<style>body {{ font-family: sans-serif; margin: 3em auto; max-width: 40em; padding: 0 1em }}</style>
</head>
<body>
<h1>{name}</h1>
<p>{description}</p>
<p>Version {version}</p>
<ul>
{links}
</ul>
</body>
</html>
"""


def landing_page(name: str, version: str, description: str, links: Sequence[tuple[str, str]]) -> str:
    """HTML with one link for each (path, what it is)."""
    items = (f'<li><a href="{escape(path)}">{escape(text)}</a></li>' for path, text in links)
    return _PAGE.format(
        name=escape(name), version=escape(version), description=escape(description), links="\n".join(items)
    )
