"""What docstrings say in reStructuredText, as optax's do, in the Markdown that the API pages are made of.

Mathematics, cross-references and links are translated. A class whose fields carry their meaning in a comment on their
line, or in a string below it, gets a list of them; not one whose docstring describes them itself.
"""

import re
import textwrap
from typing import Any

import griffe

_MATH_BLOCK = re.compile(r"^( *)\.\. math::\n((?:\1 +\S.*\n?|\s*\n(?=\1 +\S))+)", re.MULTILINE)
_MATH = re.compile(r":math:`([^`]+)`")
_REFERENCE = re.compile(r":(?:func|class|meth):`([^`]+)`")
_LINK = re.compile(r"`([^`<]+?)\s*<(https?://[^>]+)>`_", re.DOTALL)
_COMMENT = re.compile(r".*#\s*(?!type:)(\S.*)")


class Docstrings(griffe.Extension):
    """Runs once over the loaded package."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Translates every docstring of the package."""
        self._translate(pkg)

    def _translate(self, obj: Any) -> None:
        for member in obj.members.values():
            if member.is_alias:
                continue
            if member.is_module or member.is_class:
                self._translate(member)
            elif member.docstring is not None:
                member.docstring.value = to_markdown(member.docstring.value)
        if obj.docstring is not None:
            described = re.search(r"^ *(Args|Attributes):$", obj.docstring.value, re.MULTILINE)
            fields = _fields(obj) if obj.is_class and not described else ""
            obj.docstring.value = to_markdown(obj.docstring.value) + fields


def to_markdown(text: str) -> str:
    """The docstring with its mathematics between dollars, its references as autorefs and its links inline."""
    text = _MATH_BLOCK.sub(_math_block, text)
    text = _MATH.sub(r"$\1$", text)
    text = _REFERENCE.sub(_reference, text)
    return _LINK.sub(lambda match: f"[{' '.join(match[1].split())}]({match[2]})", text)


def _math_block(match: re.Match[str]) -> str:
    body = textwrap.indent(textwrap.dedent(match[2]).strip(), match[1])
    return f"{match[1]}$$\n{body}\n{match[1]}$$\n\n"


def _reference(match: re.Match[str]) -> str:
    path = match[1] if match[1].startswith("gen_optax.") else f"gen_optax.{match[1]}"
    return f"[`{path.removeprefix('gen_optax.')}`][{path}]"


def _fields(obj: griffe.Class) -> str:
    lines = []
    for name, member in obj.members.items():
        if not member.is_attribute or name.startswith("_"):
            continue
        if member.docstring is not None:
            meaning = " ".join(member.docstring.value.split())
        else:
            comment = _COMMENT.fullmatch(obj.module.filepath.read_text().splitlines()[member.lineno - 1])
            annotation, known = str(member.annotation), obj.package.members
            link = f"see [`{annotation}`][gen_optax.{annotation}]" if annotation in known else f"`{annotation}`"
            meaning = comment[1] if comment else link
        lines.append(f"    {name}: {meaning}")
    return "\n\nAttributes:\n" + "\n".join(lines) + "\n" if lines else ""
