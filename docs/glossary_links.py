"""Link the first use of each term on a page to its glossary entry: a Sphinx extension."""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx

PAGE = "glossary"
LEFT_OUT = (PAGE, "changelog", "index", "reference/")  # pages, and folders of pages
_NOT_PROSE = (nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.comment, nodes.image)


def terms(app: Sphinx) -> dict[str, str]:
    """Return the address of each term within the glossary, the longest term first."""
    objects = app.env.domains["std"].objects  # type: ignore[attr-defined]
    entries = {name: label for (kind, name), (_, label) in objects.items() if kind == "term"}
    names = {each: label for name, label in entries.items() for each in name.split(", ")}
    return dict(sorted(names.items(), key=lambda item: -len(item[0])))


def prose(doctree: nodes.document) -> Iterator[nodes.Text]:
    """Yield the texts that may get a link, in the order of the page."""
    for text in doctree.findall(nodes.Text):
        parent: nodes.Node | None = text.parent
        while parent is not None and not isinstance(parent, _NOT_PROSE):
            parent = parent.parent
        if parent is None:
            yield text


def merge_texts(doctree: nodes.document) -> None:
    """Merge neighbouring texts: a line break is a text of its own, and may be within a term."""
    for element in doctree.findall(nodes.TextElement):
        merged: list[nodes.Node] = []
        for child in element.children:
            if isinstance(child, nodes.Text) and merged and isinstance(merged[-1], nodes.Text):
                merged[-1] = nodes.Text(merged[-1] + child)
            else:
                merged.append(child)
        if len(merged) < len(element.children):
            element[:] = merged


def link(doctree: nodes.document, term: str, uri: str) -> None:
    """Link the first use of *term*, also in the plural."""
    words = r"\s+".join(map(re.escape, term.split()))
    end = r"(?:e?s)?(?![\w-])(?!\s+(?:a|per|each)\s)"  # not "once a minute"
    pattern = re.compile(rf"(?<![\w-]){words}{end}", re.IGNORECASE)
    for text in prose(doctree):
        if found := pattern.search(text):
            before, after = text[: found.start()], text[found.end() :]
            reference = nodes.reference("", found[0], refuri=uri, internal=True, classes=["term"])
            text.parent.replace(text, [nodes.Text(before), reference, nodes.Text(after)])
            return


def link_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link every term that the page uses."""
    if app.builder.format != "html" or docname.startswith(LEFT_OUT):
        return
    merge_texts(doctree)
    glossary = app.builder.get_relative_uri(docname, PAGE)
    for term, label in terms(app).items():
        link(doctree, term, f"{glossary}#{label}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("doctree-resolved", link_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
