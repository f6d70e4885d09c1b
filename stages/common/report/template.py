"""The pages' templates, filled in."""

import re
from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, **values: Any) -> str:
    """The HTML of a template. Every value is escaped; an unknown name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template(template.name).render(**values)
    # HTML has no control characters, and names may contain them.
    return re.sub(r"[^\n\x20-\x7e\xa0-\U0010ffff]", "\ufffd", text)
