"""HTML built from parts, so that escaping cannot be forgotten.

`tag` escapes every child that is not already `Html`, and every attribute. Only the functions of this module create
`Html`. Adding two of them with `+` gives a plain `str` again, which the next `tag` escapes: a mistake is visible on the
page but never executed.
"""

from __future__ import annotations

import html
from collections.abc import Iterable


class Html(str):
    """Text that is already HTML and goes into a page unchanged."""

    __slots__ = ()


def escaped(text: str) -> Html:
    """`text` with `&`, `<`, `>` and both quotes as entities. `Html` is returned unchanged."""
    return text if isinstance(text, Html) else Html(html.escape(text, quote=True))


def trusted(source: str) -> Html:
    """Marks text of this package (a template, a style sheet) as HTML. Never use it for the content of a run folder."""
    return Html(source)


def join(parts: Iterable[str], separator: str = "") -> Html:
    """The parts joined, each escaped unless it is `Html`."""
    return Html(escaped(separator).join(escaped(part) for part in parts))


def tag(name: str, *children: str, **attributes: object) -> Html:
    """One element with its children.

    Args:
        name: the element, such as "td"; void elements (`<br>`) are not supported.
        children: text, which is escaped, or `Html`.
        attributes: values are escaped; None and False omit the attribute, True writes only its name. A trailing
            underscore is dropped (`class_`), others become hyphens (`data_points`).
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value), quote=True)}"'
