"""The web page: one file, everybody's, and nobody's names run in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from report_books import adjustment, golden, report_of, request, write_books

from kong_plugins.application.report import Report
from kong_plugins.domain.money import format_micro
from kong_plugins.domain.usage import Usage
from kong_plugins.reports.html import to_html
from kong_plugins.reports.html.charts import short

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Tags with their attributes, the text, and how many of each table's cells name something."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    entries = golden() + request("x", EVIL, Usage(50, 5), model=EVIL, route=EVIL, credential=EVIL)
    entries += adjustment("y", EVIL, 5, reason=EVIL, reference=EVIL)
    return report_of(write_books(tmp_path_factory.mktemp("page") / "b.duckdb", entries))


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(to_html(report))


def test_the_page_asks_for_nothing(page: Page, report: Report) -> None:
    """No address in it but its own anchors, no script, no style from elsewhere; and a policy that forbids them."""
    named = [value for _, attributes in page.tags for key, value in attributes.items() if key in {"src", "href"}]
    assert all(value is not None and (value.startswith("#tenant-") or value == "data:,") for value in named)
    assert not {"script", "iframe", "object", "embed", "form", "img"} & {tag for tag, _ in page.tags}
    text = to_html(report)
    assert not re.search(r"url\(|@import|https?:|javascript:", text)
    policies = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_names_stay_names(page: Page) -> None:
    """Tenant, model, route, credential and reason are shown as they are and become no markup."""
    assert page.text.count(EVIL) >= 5
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]


def test_the_page_shows_what_is_owed(page: Page, report: Report) -> None:
    """The net of all and of each tenant, and what is in no amount."""
    for owner in (report, *report.tenants):
        assert format_micro(owner.net["EUR"], "EUR") in page.text
    assert "Not rated: unlisted has no price" in page.text


def test_the_page_can_be_heard(page: Page) -> None:
    """A language, a title, a name for each chart and each scrolling table, and heads on every table."""
    attributes_of = dict(page.tags)
    assert attributes_of["html"]["lang"] == "en"
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert charts
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert all(attributes.get("aria-label") for _, attributes in page.tags if attributes.get("role") == "region")
    tables = sum(tag == "table" for tag, _ in page.tags)
    heads = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    assert heads.count("row") >= tables
    assert heads.count("col") >= 2 * tables
    assert None not in heads
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_page_knows_phone_paper_and_night(report: Report) -> None:
    """Its style sheet speaks of each."""
    text = to_html(report)
    for words in ("width=device-width", "@media print", "prefers-color-scheme: dark", "@media (max-width: 30rem)"):
        assert words in text


def test_a_chart_has_a_column_for_each_hour(page: Page, report: Report) -> None:
    """Drawn to scale: the busiest hour's shapes are as high as its tokens are of the axis."""
    titles = [attributes for tag, attributes in page.tags if tag == "rect" and attributes.get("class") == "hover"]
    assert len(titles) == len(report.timeline) == 24
    heights = [int(a["height"] or 0) for tag, a in page.tags if tag == "rect" and a.get("class") != "hover"]
    tokens = max(bucket.tokens.total for bucket in report.timeline)  # 3.0 M of 3 or 4 M
    assert sum(heights) in {1000 * tokens // 4_000_000, 1000 * tokens // 4_000_000 - 1}


def test_an_empty_period_says_so(tmp_path: Path) -> None:
    """A page, not an error."""
    path = write_books(tmp_path / "b.duckdb", request("r", "t", Usage(1, 1)))
    assert "No events in this period." in Page(to_html(report_of(path, "2020-01-01"))).text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (1500, "1.5 k"), (2_000_000, "2 M"), (10**13, "10 T")]
)
def test_an_axis_has_short_figures(value: int, text: str) -> None:
    """Three digits and a letter."""
    assert short(value) == text


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)")
def test_a_browser_shows_it_without_a_word(report: Report, tmp_path: Path) -> None:
    """Chromium draws the file on a phone's width and reports no error; no part is wider than the screen."""
    assert CHROMIUM is not None
    (tmp_path / "r.html").write_text(to_html(report))
    measure = (
        "const page = f.contentDocument, wide = [...page.querySelectorAll('section > .scroll, .pair .scroll')];"
        "document.title = page.documentElement.scrollWidth + ' wide, '"
        " + wide.filter(one => one.scrollWidth > one.clientWidth).length + ' to scroll'"
    )
    frame = "<iframe id=f src=r.html style='width:320px;height:900px;border:0'></iframe>"
    shell = f"{frame}<script>onload = () => {{{measure}}}</script>"
    (tmp_path / "phone.html").write_text(shell)
    done = subprocess.run(
        [
            *(
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--allow-file-access-from-files",
            ),
            *(
                f"--user-data-dir={tmp_path / 'profile'}",
                "--enable-logging=stderr",
                "--v=0",
                "--virtual-time-budget=3000",
            ),
            *("--dump-dom", (tmp_path / "phone.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert "<title>320 wide, 0 to scroll</title>" in done.stdout
