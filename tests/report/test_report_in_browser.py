"""The report in a real browser: sorted, searched, clicked; no error, no request, no name that became markup."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import IMAGE, SCRIPT

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no chromium and chromedriver on the path: the report was not opened in a browser"
    " (apt-get install chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def browser(hostile_dump: Path) -> Iterator[Any]:
    """On the hostile model's report. Both programs are the distribution's: nothing is downloaded."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.set_window_size(1440, 900)
        driver.get((hostile_dump / "report.html").as_uri())
        yield driver
    finally:
        driver.quit()


def open_tab(browser: Any, part: str) -> Any:
    browser.find_element("id", f"tab-{part}").click()
    return browser.find_element("id", part)


def until(browser: Any, holds: Callable[[], bool]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 10).until(lambda _: holds())


def choose(browser: Any, select: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", select)).select_by_value(value)


def test_the_first_page_says_how_much_is_in_four_bits(browser: Any) -> None:
    text = open_tab(browser, "summary").text
    assert browser.find_element("tag name", "h1").text == "Hostile"
    assert "8 of 11" in text
    assert "output head: its result goes into the loss" in text
    assert "than without any pass" in text


def test_the_table_sorts_and_filters(browser: Any) -> None:
    section = open_tab(browser, "products")
    head = section.find_elements("css selector", "th button")[2]
    assert head.text.startswith("role")

    def roles() -> list[str]:
        return [cell.text for cell in section.find_elements("css selector", "tbody td:nth-child(3)")]

    assert roles() != sorted(roles())
    head.click()
    assert roles() == sorted(roles())
    head.click()
    assert roles() == sorted(roles(), reverse=True)
    assert section.find_elements("css selector", "th")[2].get_attribute("aria-sort") == "descending"
    search = browser.find_element("id", "product-search")
    search.send_keys("head dgrad")
    assert roles() == ["dgrad"]
    search.clear()
    search.send_keys("\ue00c")  # an event for the cleared field
    choose(browser, "product-decision", "alone")
    assert len(roles()) == 3
    choose(browser, "product-decision", "")


def test_names_that_are_markup_are_shown_as_they_are(browser: Any) -> None:
    section = open_tab(browser, "products")
    assert f"parts.{IMAGE}" in section.text
    assert SCRIPT in section.text
    assert not browser.find_elements("tag name", "img")
    assert len(browser.find_elements("tag name", "script")) == 2
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text


def test_a_search_goes_from_match_to_match(browser: Any) -> None:
    open_tab(browser, "graph")
    search, count = browser.find_element("id", "search"), browser.find_element("id", "matches")
    search.send_keys("scaled_mm")
    assert count.text == "8 matches"
    for place in ("1 of 8", "2 of 8"):
        search.send_keys("\ue007")
        assert count.text == place
    panel = browser.find_element("id", "panel")
    assert panel.find_element("tag name", "h2").text.startswith("scaled_mm_default")
    search.send_keys("\ue00c")  # Escape
    assert count.text == ""


def test_a_click_on_a_node_tells_all_of_it(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    open_tab(browser, "graph")
    search = browser.find_element("id", "search")
    search.send_keys("scaled_mm\ue007\ue00c")  # in the middle of the picture now
    canvas = browser.find_element("id", "canvas")
    until(browser, lambda: canvas.size["width"] > 0)
    size = canvas.size
    x, y = browser.execute_script("return spectralReport.place('scaled_mm_default')")
    browser.find_element("css selector", "#panel [aria-label=close]").click()
    assert not browser.find_element("id", "panel").is_displayed()
    until(browser, lambda: canvas.size["width"] != size["width"])
    x, y = browser.execute_script("return spectralReport.place('scaled_mm_default')")
    size = canvas.size
    ActionChains(browser).move_to_element_with_offset(
        canvas, int(x - size["width"] / 2), int(y - size["height"] / 2)
    ).click().perform()
    panel = browser.find_element("id", "panel")
    assert panel.is_displayed()
    for told in (
        "scaled_mm_default",
        "spectral.scaled_mm.default",
        "f32[64, 64]",
        f"parts.{IMAGE}",
        "quantize_fp4",
        "x = part(x).relu()",
        "conftest.py",
        "addmm",
        "split_mm_default",
        "activation: nvfp4, centred",
    ):
        assert told in panel.text, told
    panel.find_element("xpath", ".//button[contains(., 'split_mm_default')]").click()
    assert browser.find_element("id", "stage").get_attribute("value") == "1"
    screenshot = tmp_path / "report.png"
    assert browser.save_screenshot(str(screenshot))
    assert screenshot.stat().st_size > 20_000


def test_colours_are_by_pass_role_format_and_type(browser: Any) -> None:
    open_tab(browser, "graph")
    choose(browser, "stage", "2")
    legend = browser.find_element("id", "legend")
    expected = {"pass": "mean_center", "role": "wgrad", "format": "nvfp4", "dtype": "u8", "part": "backward"}
    pictures = set()
    for way, label in expected.items():
        choose(browser, "coloring", way)
        assert label in legend.text
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        pictures.add(browser.execute_script("return document.getElementById('canvas').toDataURL()"))
    assert len(pictures) == len(expected)


def test_code_stands_side_by_side_and_its_lines_choose_nodes(browser: Any) -> None:
    section = open_tab(browser, "code")
    left, right = section.find_elements("css selector", ".column")
    assert "addmm" in left.text
    assert "spectral.quantize" in right.text
    assert right.find_elements("css selector", ".row.added")
    assert left.find_elements("css selector", ".row.removed")
    line = right.find_elements("css selector", ".row.node.added")[0]
    name = line.find_element("css selector", ".name").text
    line.click()
    assert browser.find_element("id", "panel").find_element("tag name", "h2").text == name
    browser.find_element("id", "next-change").click()
    assert "1 of " in section.find_element("css selector", ".count").text


def test_numerics_are_charts_and_the_latest_values(browser: Any) -> None:
    section = open_tab(browser, "numerics")
    assert len(section.find_elements("css selector", ".charts svg")) == 2  # of the gradient nothing was measured
    rows = [row.text for row in section.find_elements("css selector", "tbody tr")]
    assert len(rows) == 3
    assert any("17.5" in row and IMAGE in row for row in rows)


def test_no_error_and_no_request_but_the_page_itself(browser: Any) -> None:
    assert browser.get_log("browser") == []
    sent = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            sent.append(message["params"]["request"]["url"])
    assert sent
    assert all(url.startswith("file:") and url.endswith("report.html") for url in sent)
