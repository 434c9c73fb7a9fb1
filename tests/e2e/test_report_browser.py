"""The page of `bumble report` in a real browser: what it looks like, and that it loads nothing."""

from __future__ import annotations

import json
import shutil

import pytest

from bumblecore_core.cli import main
from workbench import pretrain_settings, sft_settings, workbench, write_config

pytestmark = pytest.mark.slow
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
SECTIONS = ["figures", "curves", "samples", "setup", "checkpoints", "events", "configuration", "versions"]
SCREENS = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]
CONTRASTS = """
const channels = colour => colour.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const background = element => {
  for (let at = element; at; at = at.parentElement) {
    const found = channels(getComputedStyle(at).backgroundColor);
    if (found.length === 3 || found[3] === 1) return luminance(found);
  }
  return 1;
};
const found = [];
for (const element of document.body.querySelectorAll("*")) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!own || !element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  const ink = luminance(channels(element.closest("svg") ? style.fill : style.color));
  const [low, high] = [ink, background(element)].sort((a, b) => a - b);
  found.push([element.tagName, element.textContent.slice(0, 40), (high + 0.05) / (low + 0.05)]);
}
return found;
"""


def bumble(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fine-tuning run with evaluation, checkpoints and a page that holds an answer."""
    bench = workbench(tmp_path_factory.mktemp("browser"))
    assert bumble("run", write_config(bench / "pretrain.yaml", **pretrain_settings(bench))) == 0
    settings = sft_settings(bench, bench / "pretrain", max_steps=8, eval_steps=2)
    settings["data"]["eval_split"] = 0.2
    settings["checkpoint"] = {"save_steps": 4}
    assert bumble("run", write_config(bench / "sft.yaml", **settings)) == 0
    assert bumble("report", bench / "sft", "--prompt", "the cat sat") == 0
    return bench / "sft"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium under selenium, with paths given so that selenium looks for nothing on the network."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'bumblecore[test]'")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in [*ARGUMENTS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield opened
    opened.quit()


@pytest.fixture(params=SCREENS, ids=lambda screen: f"{screen[0]}-{screen[1]}")
def screen(request, browser, run):
    """The page on a screen of so many pixels, for readers who prefer light or dark."""
    width, scheme = request.param
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((run / "report.html").as_uri())
    return width, scheme


def test_nothing_is_loaded_and_nothing_is_complained_about(screen, browser, run):
    entries = browser.execute_script("return performance.getEntries().map(entry => [entry.entryType, entry.name])")
    assert ["navigation", (run / "report.html").as_uri()] in entries
    assert [name for kind, name in entries if kind == "resource"] == []
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.get_log("browser") == []


def test_the_policy_stops_what_somebody_might_put_in(screen, browser):
    """That the log is empty above says something only if the browser would have complained."""
    browser.execute_script("""
        document.body.append(Object.assign(document.createElement("img"), {src: "file:///nothing.png"}));
        document.body.append(Object.assign(document.createElement("script"), {textContent: "window.ran = true"}));
    """)
    assert browser.execute_script("return window.ran") is None
    assert "Content Security Policy" in json.dumps(browser.get_log("browser"))


def test_every_section_is_there_and_visible(screen, browser):
    found = [section.get_attribute("id") for section in browser.find_elements("css selector", "main > section")]
    assert found == SECTIONS
    for name in found:
        section = browser.find_element("id", name)
        assert section.is_displayed()
        assert section.find_element("css selector", "h2").is_displayed()
        assert section.size["height"] > 80
    links = browser.find_elements("css selector", "nav a")
    assert [link.get_attribute("href").rpartition("#")[2] for link in links] == SECTIONS


def test_curves_have_a_size_and_words(screen, browser):
    svgs = browser.find_elements("css selector", "figure svg")
    assert len(svgs) == 2
    for svg in svgs:
        assert svg.size["width"] >= 570
        assert 200 < svg.size["height"] < 1.5 * svg.size["width"]
        widths = browser.execute_script(
            "return [...arguments[0].querySelectorAll('text')].map(text => text.getBoundingClientRect().width)", svg
        )
        assert len(widths) > 10
        assert min(widths) > 1
    assert {"loss", "evaluation", "learning rate"} <= set(svgs[0].text.split("\n"))
    clipped = browser.execute_script(
        "return [...document.querySelectorAll('[clip-path]')].filter(e => !document.getElementById("
        "e.getAttribute('clip-path').slice(5, -1))).length"
    )
    assert clipped == 0


def test_the_page_never_scrolls_sideways_and_tables_do_in_their_box(screen, browser):
    width, _ = screen
    for summary in browser.find_elements("css selector", "summary"):
        summary.click()
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    events = browser.find_element("css selector", "[aria-label='Last events']")
    box, inside = browser.execute_script("return [arguments[0].clientWidth, arguments[0].scrollWidth]", events)
    assert inside > box
    browser.execute_script("arguments[0].scrollLeft = 10000", events)
    assert events.find_elements("css selector", "thead th")[-1].rect["x"] < width


def test_the_trained_part_is_marked_by_more_than_colour(screen, browser, run):
    trained = [text for text, is_trained in json.loads((run / "run.info.json").read_text())["sample"] if is_trained]
    marks = browser.find_elements("css selector", "#samples pre mark")
    assert [mark.get_property("textContent") for mark in marks] == trained != []
    box = browser.find_element("css selector", "#samples pre")
    for mark in marks:
        assert mark.is_displayed()
        assert mark.value_of_css_property("background-color") != box.value_of_css_property("background-color")
        assert mark.value_of_css_property("text-decoration-line") == "underline"


def test_details_open(screen, browser):
    config = browser.find_element("css selector", "#configuration pre")
    assert not config.is_displayed()
    browser.find_element("css selector", "#configuration summary").click()
    assert config.is_displayed()
    assert "output_dir:" in config.text


def test_text_stands_out_from_what_is_behind_it(screen, browser):
    _, scheme = screen
    for summary in browser.find_elements("css selector", "summary"):
        summary.click()
    found = browser.execute_script(CONTRASTS)
    assert len(found) > 200
    assert [entry for entry in found if entry[2] < 4.5] == []
    body, card = (browser.find_element("css selector", name) for name in ("body", "figure"))
    page = [int(part) for part in body.value_of_css_property("background-color").strip("rgba()").split(", ")[:3]]
    assert max(page) < 60 if scheme == "dark" else min(page) > 200
    assert card.value_of_css_property("background-color") == "rgba(255, 255, 255, 1)"


def test_print_shows_what_is_folded(browser, run):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    browser.get((run / "report.html").as_uri())
    try:
        for folded in browser.find_elements("css selector", "details > :not(summary)"):
            # selenium's own idea of what is displayed looks at the attribute `open` alone
            assert browser.execute_script("return arguments[0].checkVisibility()", folded)
            assert folded.rect["height"] > 200
        assert not browser.find_element("css selector", "nav").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
