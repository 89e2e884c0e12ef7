"""HTML and SVG from values: all text is escaped unless it is markup already, so that no name from a file can act."""

from html import escape

from waterfill.report.text import printable

_VOID = ("meta", "br", "hr", "input", "line", "rect", "circle", "path", "polyline")


class Markup(str):
    """Text that is HTML already."""


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One element. Attributes of None or False are left out; `class_` is class, and other underscores are hyphens."""
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    shown = [f' {name}="{_attribute(value)}"' for name, value in given.items() if value not in (None, False)]
    if tag in _VOID and not children:
        return Markup(f"<{tag}{''.join(shown)}/>" if tag not in _VOID[:4] else f"<{tag}{''.join(shown)}>")
    return Markup(f"<{tag}{''.join(shown)}>{joined(*children)}</{tag}>")


def joined(*children: str) -> Markup:
    """Children side by side, what is no markup escaped."""
    return Markup("".join(child if isinstance(child, Markup) else escape(printable(child)) for child in children))


def _attribute(value: object) -> str:
    if value is True:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else escape(printable(f"{value}"))
