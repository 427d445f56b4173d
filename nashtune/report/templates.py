"""The report's and the model card's templates."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str) -> Template:
    """A template of this package; in HTML everything that is filled in is escaped, in Markdown nothing is."""
    html = name.endswith(".html.j2")
    return Environment(
        loader=PackageLoader("nashtune.report"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=html,
        keep_trailing_newline=not html,
    ).get_template(name)
