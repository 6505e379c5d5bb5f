"""A page of HTML read strictly: what a report holds, and that a browser has nothing to guess."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Every element opened is closed in order, or this raises. `texts` by the innermost tag,
    `links` all that elements point to, `data` the decoded bytes of data URIs by MIME type."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.links: list[str] = []
        self.data: dict[str, list[bytes]] = {}
        self.svgs = [ElementTree.fromstring(svg) for svg in re.findall(r"(?s)<svg.*?</svg>", text)]
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        assert len(found) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        for name in ("src", "href", "poster", "data", "action", "srcset", "xlink:href"):
            if name in found:
                self._point(found[name])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)

    def count(self, tag: str, kind: str = "") -> int:
        """Elements of a name, and of a CSS class."""
        return sum(
            name == tag and kind in ("", *found.get("class", "").split())
            for name, found in self.tags
        )

    def _point(self, target: str) -> None:
        if target.startswith("data:"):
            head, _, body = target.removeprefix("data:").partition(",")
            kind, _, coding = head.partition(";")
            assert coding == "base64"
            self.data.setdefault(kind, []).append(base64.b64decode(body, validate=True))
        else:
            self.links.append(target)


def read_page(text: str) -> Page:
    """The page, checked to need no network and to run nothing."""
    page = Page(text)
    names = {name for name, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "base", "form"}
    for _, found in page.tags:
        assert not [name for name in found if name.startswith("on")]
    for target in page.links:
        assert not re.match(r"(?i)\s*([a-z][a-z0-9+.-]*:|//)", target), target
    for style in page.texts["style"]:
        assert "url(" not in style
        assert "@import" not in style
        assert style.count("{") == style.count("}")
    return page
