"""Reports looked at from outside: the text of an HTML page, what a browser does with it, the text of a PDF."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

VOID_TAGS = {"meta", "link", "img", "br", "hr", "input", "area", "base", "col", "embed", "source", "track", "wbr"}


class Page(HTMLParser):
    """A parsed page: `text` as a reader sees it (blanks joined), `links` (tag, attribute, value), `tags` in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self._words: list[str] = []
        self._hidden: list[str] = []
        self.links: list[tuple[str, str, str]] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.text = " ".join("".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {k: v or "" for k, v in attrs}
        self.tags.append((tag, values))
        self.links += [(tag, k, v) for k, v in values.items() if k in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID_TAGS:
            self.open.append(tag)
        if tag in ("script", "style", "title"):
            self._hidden.append(tag)
        elif tag in ("td", "th", "p", "li", "div", "section", "h1", "h2", "h3", "tr", "button", "br"):
            self._words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else"
        if self._hidden and self._hidden[-1] == tag:
            self._hidden.pop()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._words.append(data)

    def of_class(self, name: str) -> list[dict[str, str]]:
        """The attributes of every tag that has the class."""
        return [a for _, a in self.tags if name in a.get("class", "").split()]


def page(path: Path) -> Page:
    """The parsed page; every tag that was opened is closed."""
    found = Page(path.read_text("utf-8"))
    assert not found.open, f"never closed: {found.open}"
    return found


def browser() -> str | None:
    """A Chromium on the PATH."""
    return next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


def visited(path: Path, folder: Path, width: int = 1200) -> tuple[list[str], list[str], str]:
    """What a browser does with a page: its console's lines, the addresses the page asked for, the document it made.

    Chromium asks for addresses of its own; those have no page as their initiator. No name is resolved.
    """
    log = folder / "net.json"
    command = [
        browser() or "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr",
        f"--window-size={width},2000", "--virtual-time-budget=6000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = re.findall(r"CONSOLE[^\"]*\"(.*)\", source:", done.stderr)
    text = log.read_text()
    try:
        events = json.loads(text)["events"]
    except ValueError:  # the log of a browser that ended at once may lack its end
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    asked = [p["url"] for e in events if (p := e.get("params", {})).get("url") and "initiator" in p
             and p["initiator"] != "not an origin" and p["url"].startswith(("http", "ws", "ftp"))]  # fmt: skip
    return console, asked, done.stdout


def pdf_text(path: Path) -> str:
    """The text of a PDF that matplotlib wrote, a string a line, its fonts embedded and searchable in a viewer."""
    data = path.read_bytes()
    assert data.startswith(b"%PDF-")
    assert data.rstrip().endswith(b"%%EOF")
    assert b"/FontFile2" in data, "no TrueType font is embedded"
    assert b"/ToUnicode" in data, "a viewer could not search it"
    assert b"/Type3" not in data
    streams = [_inflated(m) for m in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.S)]
    return "\n".join(_shown(s) for s in streams if b" Tf" in s)


def _inflated(raw: bytes) -> bytes:
    try:
        return zlib.decompress(raw)
    except zlib.error:
        return raw


def _shown(stream: bytes) -> str:
    """The strings a content stream shows; characters are written with one byte or two, by version."""
    words = []
    for array, single in re.findall(rb"\[(.*?)\]\s*TJ|\(((?:\\.|[^\\()])*)\)\s*Tj", stream, re.S):
        pieces = re.findall(rb"\(((?:\\.|[^\\()])*)\)", array, re.S) if array else [single]
        whole = b"".join(re.sub(rb"\\(.)", rb"\1", p, flags=re.S) for p in pieces)
        words.append(whole.replace(b"\0", b"").decode("latin-1"))
    return "\n".join(words)
