"""The pages in a real browser: they are drawn, without an error, and ask nothing of the network."""

import re

import pytest

from edgewatt.reports import trace, tradeoff
from support.example_run import example_run
from support.hand_runs import hand_run
from support.pages import browser, visited

pytestmark = [
    pytest.mark.needs_chromium,
    pytest.mark.skipif(browser() is None, reason="no Chromium on the PATH"),
]
NASTY = "x</script><script>document.title='taken'</script>$$\\frac12$$ \\(y\\)<img src=http://example.org/i.png>"


def reports(folder):
    runs = [example_run(k, size=s, name=n) for k, (s, n) in enumerate([(416, "host"), (320, NASTY), (640, "host")])]
    tradeoff.write(runs[:1], folder / "one.html")
    tradeoff.write(runs, folder / "many.html")
    tradeoff.write([example_run(1, name=NASTY)], folder / "nasty.html")
    trace.write(example_run(1, name=NASTY), folder / "trace.html")
    return sorted(folder.glob("*.html"))


def test_pages_draw_without_an_error_or_a_request(tmp_path):
    for path in reports(tmp_path):
        # Without its policy the page must be as quiet: nothing is asked for, rather than asked for and blocked.
        policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
        html, n = policy.subn("", path.read_text())
        assert n == 1
        free = path.with_suffix(".free.html")
        free.write_text(html)
        for k, variant in enumerate((path, free)):
            folder = tmp_path / f"{path.stem}-{k}"
            folder.mkdir()
            console, asked, document = visited(variant, folder)
            assert asked == []
            assert [c for c in console if not c.startswith("[bokeh")] == []
            said = [c.split("] ", 1)[1] for c in console]
            assert [s for s in said if s.startswith("document idle")], said  # everything is drawn
            assert len(said) == 2, said  # and nothing else was worth a word
            assert "<title>taken" not in document


def test_a_request_or_an_error_would_be_seen(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://cdn.example.com/x.png"><script>throw new Error("boom")</script>')
    console, asked, _ = visited(page, tmp_path)
    assert "http://cdn.example.com/x.png" in asked
    assert any("boom" in c for c in console)


def test_legend_hides_what_it_names(tmp_path):
    path = tmp_path / "one.html"
    tradeoff.write([hand_run()], path)
    script = """<script>
    const wait = setInterval(() => {
      if (!window.Bokeh || !Bokeh.documents.length) return;
      clearInterval(wait);
      const key = document.querySelector('[data-draws="items"]');
      const models = [...Bokeh.documents.flatMap((d) => [...(d.all_models ?? d._all_models.values())])];
      const drawn = models.filter((m) => m.name === "items" && "visible" in m);
      const before = drawn.every((m) => m.visible);
      key.click();
      document.title = `${drawn.length} ${before} ${drawn.some((m) => m.visible)} ${key.getAttribute("aria-pressed")}`;
    }, 50);
    </script></body>"""
    path.write_text(path.read_text().replace("</body>", script))
    _, _, document = visited(path, tmp_path)
    assert "<title>1 true false false</title>" in document
