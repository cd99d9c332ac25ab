"""The pages of documentation: they build without a network, load nothing, and name real options."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# mkdocs in an interpreter that has no network
OFFLINE = """
import socket
def refuse(*_):
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli()
"""
COMMANDS = {
    "bmex": "bmex_bids.cli",
    "bmex-weights": "bmex_bids.weights_cli",
    "bmex-train": "bmex_bids.training.cli",
    "bmex-degrade": "bmex_bids.evaluation.degrade_cli",
    "bmex-evaluate": "bmex_bids.evaluation.evaluate_cli",
}
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", OFFLINE, "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """Collects the addresses that a page loads by itself, those of links left out."""

    def __init__(self, page: Path):
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        address = found.get(LOADING.get(tag, ""))
        if address and found.get("rel") != "canonical":
            self.addresses.append(address)


def test_every_page_becomes_one_and_the_navigation_has_it(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    names = [path.stem for path in (ROOT / "docs").glob("*.md")]
    assert "quickstart" in names
    for name in names:
        assert (site / f"{name}.html").is_file()
        assert f'href="{name}.html"' in start or name == "index"


def test_nothing_is_loaded_from_a_network(site: Path) -> None:
    pages, sheets = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert pages and sheets
    loaded = {address for page in pages for address in Loaded(page).addresses}
    assert loaded and not [a for a in loaded if re.match(r"(?:[a-z]+:)?//", a)]
    for sheet in sheets:
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", text), sheet


def test_pictures_are_small(site: Path) -> None:
    pictures = [path for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".jpg")]
    assert pictures and sum(path.stat().st_size for path in pictures) < 1_500_000


def test_parts_tables_and_formulas_are_in_their_pages(site: Path) -> None:
    reliability = (site / "reliability.html").read_text(encoding="utf-8")
    for part in (ROOT / "docs" / "reliability.d").glob("*.md"):
        heading = re.search(r"^#+ (.+)$", part.read_text(encoding="utf-8"), re.MULTILINE)
        assert heading and heading[1].split("`")[0] in reliability
    assert "bmex-brainmask" in (site / "ages-and-models.html").read_text(encoding="utf-8")
    outputs = (site / "outputs.html").read_text(encoding="utf-8")
    assert "<math" in outputs and "arithmatex" not in outputs


def options_of(name: str, module: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return every option that the help of a command names."""
    main = importlib.import_module(module).main
    for words in ([], ["import"]) if name == "bmex-weights" else ([],):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
    return set(re.findall(r"--[a-z][\w-]+", capsys.readouterr().out))


def test_options_in_the_pages_exist_and_those_of_the_app_are_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    known = {name: options_of(name, module, capsys) for name, module in COMMANDS.items()}
    said: set[str] = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, rest in re.findall(r"(?:^|[\s`/])(bmex(?:-[a-z]+)?) ([^|#`\n]*)", text, re.M):
            wrong = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", rest)) - known.get(name, set())
            assert name not in known or not wrong, f"{page.name}: {name} has no {wrong}"
        said |= set(re.findall(r"--[a-z][\w-]+", text))
    aliases = {option for option in known["bmex"] if "_" in option} | {"--help", "--session-id"}
    assert known["bmex"] - aliases <= said


def test_links_of_the_first_page_lead_to_pages_and_headings(site: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((docs/([\w-]+)\.md)(?:#([\w-]+))?\)", readme)
    assert links
    for path, page, anchor in links:
        assert (ROOT / path).exists(), path
        built = (site / f"{page}.html").read_text(encoding="utf-8")
        assert not anchor or f'id="{anchor}"' in built, f"{path} has no #{anchor}"


def test_every_picture_is_shown_somewhere() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "README.md"])
    for picture in (*ROOT.glob("docs/*.png"), *ROOT.glob("docs/*.jpg")):
        assert f"({picture.name})" in text or f"docs/{picture.name}" in text, picture.name
