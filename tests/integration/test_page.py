"""The comparison's page in a real browser; needs Debian's chromium and chromium-driver."""

import shutil

import pytest
from finished_runs import with_facts
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from dense_retrieval.comparison import page
from dense_retrieval.comparison.comparison import Comparison
from dense_retrieval.comparison.runs import find, read_all

if not shutil.which("chromedriver"):
    pytest.skip("there is no chromedriver", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"):
        options.add_argument(f"--{switch}")
    options.add_argument("--disable-background-networking")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    with_facts(folder)
    comparison = Comparison(read_all(find([folder]))[0], samples=200)
    (folder / "page.html").write_text(page.render(comparison, []), encoding="utf-8")
    return folder / "page.html"


@pytest.fixture
def opened(browser, written):
    browser.set_window_size(1200, 900)
    browser.get(written.as_uri())
    drawn(browser, 4)
    return browser


def drawn(browser, charts: int) -> None:
    WebDriverWait(browser, 60).until(
        lambda b: b.execute_script("return document.documentElement.dataset.drawn") == str(charts)
    )


def column(browser, name: str) -> list[str]:
    heads = [h.text.rstrip(" ↕↑↓") for h in browser.find_elements(By.CSS_SELECTOR, ".sortable th button")]
    rows = browser.find_elements(By.CSS_SELECTOR, ".sortable tbody tr")
    return [row.find_elements(By.TAG_NAME, "td")[heads.index(name)].text for row in rows]


def test_it_opens_without_an_error_and_draws_described_charts(opened):
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []
    charts = opened.find_elements(By.CSS_SELECTOR, ".chart svg")
    assert len(charts) == 4
    labels = [
        chart.find_element(By.XPATH, "ancestor-or-self::*[@aria-label][1]").get_attribute("aria-label")
        for chart in charts
    ]
    assert all(labels) and any("95 % intervals" in label for label in labels)
    assert "listwise" in opened.find_element(By.CSS_SELECTOR, ".chart").text


def test_a_column_s_name_sorts_by_it_also_from_the_keyboard(opened):
    before = column(opened, "nDCG@10")
    button = next(
        b for b in opened.find_elements(By.CSS_SELECTOR, ".sortable th button") if b.text.startswith("nDCG")
    )
    button.click()
    assert column(opened, "nDCG@10") == sorted(before, reverse=True)
    button.send_keys(Keys.ENTER)
    assert column(opened, "nDCG@10") == sorted(before)
    head = button.find_element(By.XPATH, "..")
    assert head.get_attribute("aria-sort") == "ascending"
    button = opened.find_elements(By.CSS_SELECTOR, ".sortable th button")[4]  # p: empty cells stay last
    button.click()
    assert column(opened, "p")[-1] == ""


def test_the_theme_switches(opened):
    body, button = opened.find_element(By.TAG_NAME, "body"), opened.find_element(By.ID, "theme")
    first = body.value_of_css_property("background-color")
    button.click()
    assert body.value_of_css_property("background-color") != first
    assert button.get_attribute("aria-pressed") in ("true", "false")
    button.send_keys(Keys.SPACE)
    assert body.value_of_css_property("background-color") == first
    drawn(opened, 4)
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.fixture
def phone(browser, written):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(written.as_uri())
    drawn(browser, 4)
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def boxes(browser, selector: str) -> list[tuple[str, dict[str, float]]]:
    """Text and rectangle of what is shown."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility() && e.textContent)"
        ".map(e => [e.textContent, e.getBoundingClientRect().toJSON()])",
        selector,
    )


def test_on_a_phone_the_difference_and_p_are_in_view(phone):
    for label in ("nDCG@10", "difference", "p"):
        shown = boxes(phone, f".sortable td[data-label='{label}']")
        assert len(shown) >= 2 and all(box["left"] >= 0 and box["right"] <= 390 for _, box in shown)
    for table in ("table.cards", ".chart"):
        wider = phone.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.scrollWidth - e.clientWidth)",
            table,
        )
        assert max(wider) <= 0
    assert phone.execute_script("return document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("device", ["phone", "opened"])
def test_the_ticks_of_charts_do_not_overlap(device, request):
    browser = request.getfixturevalue(device)
    for chart in browser.find_elements(By.CSS_SELECTOR, ".chart"):
        found = boxes(browser, f"#{chart.get_attribute('id')} .role-axis-label text")
        assert len(found) >= 3
        for number, (_, one) in enumerate(found):
            for _, other in found[:number]:
                apart = (
                    one["left"] >= other["right"]
                    or other["left"] >= one["right"]
                    or one["top"]
                    >= other["bottom"] - 2  # a line's height has room above and below its letters
                    or other["top"] >= one["bottom"] - 2
                )
                assert apart, found


def test_a_phone_needs_no_sideways_scrolling(opened):
    opened.set_window_size(500, 900)  # the least that Chromium opens
    # A chart keeps its old width until it is drawn anew.
    opened.execute_script(
        "for (const svg of document.querySelectorAll('.chart svg')) svg.style.width = '1100px'"
    )
    wide = opened.execute_script("return document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
