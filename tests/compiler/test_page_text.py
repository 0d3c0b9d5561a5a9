"""The text of pages: what is apart on a page is apart in the text, and what is together stays so."""

from __future__ import annotations

import pytest

from pocketphi.artifacts.retrieval.passages import passages_of
from pocketphi.compiler.page_text import page_text

TEXTS = {
    "<nav>Home</nav><main>Welcome</main><ul><li>Apples</li><li>Pears</li></ul>Abc<header>Kopf</header><footer>Fuss</footer>": [
        "Home",
        "Welcome",
        "Apples",
        "Pears",
        "Abc",
        "Kopf",
        "Fuss",
    ],
    "Press <button>Save</button><button>Stop</button> <option>Red</option><option>Green</option> now": [
        "Press Save Stop Red Green now"
    ],
    "<table><tr><td>A</td><td>B</td></tr><tr><th>C<td>D</table>": ["A B", "C D"],
    "A<b>B</b><i>C</i> H<sub>2</sub>O, <a href=x>here</a>.<br>D<br/>E": ["ABC H2O, here.", "D", "E"],
    "<p>A &amp;\n <em> B</em> \n C</p>": ["A & B C"],
    "<pre>\na = 1\n\tb = <span>2</span>\n# c\n</pre>after<pre>d<br>e</pre>": [
        "a = 1",
        "\tb = 2",
        "# c",
        "after",
        "d",
        "e",
    ],
    "<pre><div>a</div><div>  b</div></pre>": ["a", "  b"],
    "<math><mi>x</mi><mo>=</mo><mn>1</mn></math><svg><title>T</title><p>no</svg><script>no</script><style>no</style>.": [
        "x = 1 ."
    ],
    "<my-tag>A</my-tag>B<dl><dt>C<dd>D</dl><address>E</address>": ["A", "B", "C", "D", "E"],
    "<p># 5 bolts</p><p>``` x</p><p>A</p>----<p>B": ["# 5 bolts", "``` x", "A", "----", "B"],
    "</pre></h1>A<pre>b": ["A", "b"],
    "A<![if x[y]>B<![ [>C<![endif]-->D<![CDATA[x]]>E": ["ABCDE"],
    "1 < 2 &amp <": ["1 < 2 & <"],
}


@pytest.mark.parametrize("page", TEXTS)
def test_what_is_apart(page: str) -> None:
    (one,) = passages_of("a.html", page_text(page), "page")
    assert (one.heading, [line for line in one.text.split("\n") if line]) == ("", TEXTS[page])


HEADINGS = {
    "<h2>Head<br>ing</h2>text": ("Head ing", "text"),
    "<h1> <div>Head <b>i</b>ng</div>\n</h1>text": ("Head ing", "text"),
    "<title>A</title><h1>B</h1><h3>C</h3><p>text": ("A > B > C", "text"),
    "<h2></h2><h2>A<p>text</h2>": ("A", "text"),
    "<h2>A<h2>B</h2>text<svg><title>no</title></svg>": ("B", "text"),
    "<h5>A</h5><h6># C#</h6>text": ("# C#", "text"),
    "<h5>A</h5><h6>" + "word " * 99 + "<p>text": ("A", "word " * 98 + "word\n\ntext"),
}


@pytest.mark.parametrize("page", HEADINGS)
def test_headings(page: str) -> None:
    *_, one = passages_of("a.html", page_text(page), "page")
    assert (one.heading, one.text) == HEADINGS[page]
    assert "\0" not in one.text


def test_a_large_page_takes_time_in_proportion() -> None:
    """By a way that takes the square of it, minutes."""
    for tag in ("<td>", "<p>", "<h1>", "<pre>", "<svg></svg>", "</td>"):
        first, *_, last = page_text("a" + tag * 10_000 + "b").split()
        assert (first, last) == ("a", "b")


@pytest.mark.parametrize("cut", ["<a ", "<a b='>", '<a b="c" ', "<!--", "<![CDATA[", "</p"])
def test_what_the_end_cuts_off_is_hidden(cut: str) -> None:
    """Each tried anew, this takes minutes."""
    assert page_text("a" + cut * 40_000) == "a"


def test_a_page_of_a_title_alone() -> None:
    assert [one.text for one in passages_of("a.htm", page_text("<title>Emergency 4711"), "page")] == ["Emergency 4711"]
