"""An HTML page that holds all it needs, and the colour key of what is drawn on it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

__all__ = ["document", "key"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }
svg { display: block; width: 100%; height: auto; margin: 0 0 1em }
svg text { font: 11px system-ui, sans-serif; fill: currentColor }
svg .grid { stroke: currentColor; stroke-opacity: 0.15 }
table { border-collapse: collapse } td { padding: 0 1.5em 0 0 }
.key { display: inline-block; width: 1em; height: 1em; margin: 0 0.4em 0 1em;
  vertical-align: -0.15em }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1a1a19 } }
"""


def document(title: str, body: str, style: str = "") -> str:
    """The page of this title with `body` below it, which is HTML; it is valid XML as well."""
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en">\n<head>'
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def key(colours: Mapping[str, str]) -> str:
    """A paragraph that shows which name has which colour."""
    entries = "".join(
        f'<span class="key" style="background:{colour}"></span>{escape(name)}'
        for name, colour in colours.items()
    )
    return f"<p>{entries}</p>"
