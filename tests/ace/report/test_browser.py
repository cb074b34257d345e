"""The pages of runs in a real browser, opened from the disk."""

import io
import shutil
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from ace.record import append_record
from ace.report import write_comparison, write_report
from ace.run_store import Record, RunStore
from tests.ace.report.conftest import BLUE, NAMES, REASON, RED, explained

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PAGE = 48
COUNT = 60

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: install the packages chromium and chromium-driver"
)

# Text whose contrast with what is behind it is below that of WCAG AA, each with its ratio.
PALE = """
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const behind = (node) => { for (; node; node = node.parentElement) {
  const colour = parse(getComputedStyle(node).backgroundColor);
  if (colour.length === 3 || colour[3] === 1) return colour; } };
return [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility()
    && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) && !node.matches(":disabled"))
  .map((node) => { const pair = [parse(getComputedStyle(node).color), behind(node)].map(light).sort((a, b) => a - b);
    return [node.outerHTML.slice(0, 80), (pair[1] + .05) / (pair[0] + .05)]; })
  .filter(([_, ratio]) => ratio < 4.5);
"""


class Browser:
    """A window with one of our pages in it."""

    def __init__(self, driver):
        self.driver = driver
        self.js = driver.execute_script

    def open(self, path, width=1200, scheme="light"):
        mobile = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", mobile)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(path.as_uri())

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def ids(self):
        return self.js("return [...document.querySelectorAll('#cards > li')].map((card) => card.dataset.id)")

    def choose(self, name, value):
        Select(self.one(f"#controls [name={name}]")).select_by_value(value)

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self):
        return self.driver.switch_to.active_element.text

    def cut(self, selector=".compare"):
        return self.js(f"return getComputedStyle(document.querySelector('{selector}')).getPropertyValue('--cut')")

    def picture(self, selector):
        """What an element looks like, uint8 RGB."""
        return np.asarray(Image.open(io.BytesIO(self.one(selector).screenshot_as_png)).convert("RGB"))

    def until(self, condition):
        """Wait until something is so, and return what it is."""
        return WebDriverWait(self.driver, 10, poll_frequency=0.05).until(lambda _: condition())

    def messages(self):
        return self.driver.get_log("browser")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver):
    yield Browser(driver)
    assert Browser(driver).messages() == [], "the page complained on the console"


def random_records(seed):
    """Explained images in three directions, and two without a counterfactual."""
    random = np.random.default_rng(seed)
    records = [
        Record(id="none-failed", seed=0, status=REASON),
        Record(id="none-skipped", seed=0, status="skipped: why"),
    ]
    for index in range(COUNT - len(records)):
        p_after, l1, l2, linf, area = random.random(5).tolist()
        prediction = int(random.integers(3))
        numbers = {"p_after": p_after, "l1": l1, "l2": l2, "linf": linf, "changed_area": area}
        numbers |= {"iterations": int(random.integers(1, 99)), "prediction": prediction, "target": (prediction + 1) % 3}
        records.append(explained(f"image-{index:03d}", flipped=p_after > 0.5, **numbers))
    return records


@pytest.fixture(scope="module")
def stores(make_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / name, random_records(seed)) for seed, name in enumerate(("one", "two <b>#1%"))]


@pytest.fixture(scope="module")
def records(stores):
    return stores[0].records()


@pytest.fixture(scope="module")
def report(stores):
    return write_report(stores[0])


@pytest.fixture(scope="module")
def comparison(stores):
    return write_comparison(stores)


def ordered(records, name="id", sign=1):
    known = [record for record in records if getattr(record, name) is not None]
    unknown = [record for record in records if getattr(record, name) is None]
    return [r.id for r in [*sorted(known, key=lambda r: getattr(r, name), reverse=sign < 0), *unknown]]


# --- pictures


def test_the_slider_moves_the_cut_by_pointer_and_by_key(browser, report):
    browser.open(report)
    browser.one(".compare img")
    shown = browser.picture(".compare")
    top, width = len(shown) // 4, shown.shape[1]
    assert tuple(shown[top, width // 8]) == RED, "original on the left"
    assert tuple(shown[top, -width // 8]) == BLUE, "counterfactual on the right"
    assert tuple(shown[-top, -width // 8]) == RED, "unchanged below"
    slider = browser.one(".compare input")
    ActionChains(browser.driver).move_to_element(slider).click_and_hold().move_by_offset(-width // 4, 0).perform()
    assert 24 <= float(browser.cut().rstrip("%")) <= 26
    ActionChains(browser.driver).release().perform()
    assert tuple(browser.picture(".compare")[top, 3 * width // 8]) == BLUE
    slider.send_keys(Keys.END)
    assert browser.cut() == "100%"
    slider.send_keys(Keys.ARROW_LEFT * 5)
    assert browser.cut() == "95%"
    assert tuple(browser.picture(".compare")[top, 3 * width // 4]) == RED


def test_all_pictures_of_a_page_load_from_the_disk(browser, report, stores):
    browser.open(report)
    assert browser.js("return [...document.images].every((image) => image.loading === 'lazy')")
    browser.js("for (const image of document.images) image.loading = 'eager'")
    broken = browser.js(
        "await Promise.allSettled([...document.images].map((image) => image.decode()));"
        "return [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src)"
    )
    assert broken == []
    sources = browser.js("return [...document.images].map((image) => image.src)")
    assert len(sources) > 2 * PAGE
    assert all(source.startswith(stores[0].folder.as_uri()) for source in sources)


def test_cards_show_thumbnails_and_the_detail_view_the_whole(browser, make_run, tmp_path):
    browser.open(write_report(make_run(tmp_path, [explained("a")], size=(250, 500))))
    size = "return document.querySelector('{} .before').naturalWidth"
    decoded = "await document.querySelector('{} .before').decode();"
    assert browser.js(decoded.format("#cards") + size.format("#cards")) == 384
    browser.one(".open").click()
    assert browser.js(decoded.format("#detail") + size.format("#detail")) == 500
    assert browser.one("#detail .compare").rect["width"] == 500


# --- filter, sort, pages


def test_filters_leave_what_was_asked_for(browser, report, records):
    browser.open(report)
    direction = f"{NAMES[1]} -> {NAMES[2]}"
    Select(browser.one("[name=direction]")).select_by_visible_text(direction)
    there = [record for record in records if record.prediction == 1]
    assert browser.ids() == [record.id for record in there]
    assert browser.one("output").text == f"{len(there)} of {COUNT} images"
    browser.choose("outcome", "not_flipped")
    missed = [record.id for record in there if not record.flipped]
    assert browser.ids() == missed
    assert len(missed) not in (0, len(there))
    browser.one("[name=name]").send_keys(missed[0][-2:].upper())
    assert browser.ids() == [id for id in missed if missed[0][-2:] in id]
    browser.one("[name=name]").send_keys("nowhere")
    assert browser.ids() == []
    assert browser.one("#none").is_displayed()


@pytest.mark.parametrize("sign", [1, -1])
def test_every_order_is_right_and_what_is_unknown_comes_last(browser, report, records, sign):
    browser.open(report)
    browser.choose("order", str(sign))
    names = [option.get_attribute("value") for option in Select(browser.one("[name=sort]")).options]
    assert names == ["id", "l1", "l2", "linf", "changed_area", "p_after", "iterations"]
    for name in names:
        browser.choose("sort", name)
        expected = ordered(records, name, sign)
        key = {record.id: getattr(record, name) for record in records}
        assert [key[id] for id in browser.ids()] == [key[id] for id in expected[:PAGE]], name
    browser.one("#pager [name=next]").click()
    assert browser.ids()[-2:] == ["none-failed", "none-skipped"]


def test_pages_turn(browser, report, records):
    browser.open(report)
    ids = ordered(records)
    assert browser.ids() == ids[:PAGE]
    assert browser.one("#pager .pages").text == "2"
    assert not browser.one("#pager [name=previous]").is_enabled()
    browser.one("#pager [name=next]").click()
    assert browser.ids() == ids[PAGE:]
    assert not browser.one("#pager [name=next]").is_enabled()
    browser.one("#pager [name=previous]").click()
    assert browser.ids() == ids[:PAGE]
    browser.one("#pager input").send_keys(Keys.BACKSPACE, "2", Keys.TAB)
    assert browser.ids() == ids[PAGE:]
    browser.choose("outcome", "failed")
    assert browser.ids() == ["none-failed"]
    assert not browser.one("#pager").is_displayed()


# --- keyboard and detail view


def test_arrow_keys_go_between_cards_and_pages(browser, report, records):
    browser.open(report)
    ids = ordered(records)
    browser.js("document.querySelector('.open').focus()")
    browser.press(Keys.ARROW_RIGHT * 2)
    assert browser.focused() == ids[2]
    browser.press(Keys.ARROW_DOWN)
    columns = ids.index(browser.focused()) - 2
    tops = browser.js("return [...document.querySelectorAll('#cards > li')].map((card) => card.offsetTop)")
    assert columns == tops.count(tops[0]) > 2
    browser.press(Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert browser.focused() == ids[1]
    browser.press(Keys.ARROW_LEFT * 3)
    assert browser.focused() == ids[0]
    browser.press(Keys.ARROW_RIGHT * PAGE)
    assert browser.focused() == ids[PAGE]
    assert browser.ids() == ids[PAGE:]
    browser.press(Keys.ARROW_LEFT)
    assert browser.focused() == ids[PAGE - 1]


def test_enter_opens_arrows_go_on_and_escape_closes(browser, report, records):
    browser.open(report)
    ids = ordered(records)
    browser.js("document.querySelector('.open').focus()")
    browser.press(Keys.ARROW_RIGHT, Keys.ENTER)
    heading = browser.one("#detail h2")
    assert heading.text == ids[1]
    browser.press(Keys.ARROW_LEFT * 2)
    assert heading.text == ids[0]
    browser.press(Keys.ARROW_RIGHT * PAGE)
    assert heading.text == ids[PAGE]
    assert browser.one(".position").text == f"{PAGE + 1} of {COUNT}"
    browser.press(Keys.ESCAPE)
    browser.until(lambda: not browser.one("#detail").is_displayed())
    browser.until(lambda: browser.focused() == ids[PAGE])


def test_the_detail_view_has_buttons_and_its_slider_keeps_its_keys(browser, report, records):
    browser.open(report)
    ids = ordered(records)
    browser.one(".open").click()
    assert not browser.one("#detail [name=previous]").is_enabled()
    browser.one("#detail [name=next]").click()
    assert browser.one("#detail h2").text == ids[1]
    browser.one("#detail input").send_keys(Keys.ARROW_RIGHT * 3)
    assert browser.cut("#detail .compare") == "53%"
    assert browser.one("#detail h2").text == ids[1]
    browser.one("#detail [name=close]").click()
    browser.until(lambda: not browser.one("#detail").is_displayed())


def test_the_detail_view_tells_all_that_is_known(browser, report, records):
    browser.open(report)
    browser.one(".open").click()
    [record] = [record for record in records if record.id == browser.one("#detail h2").text]
    numbers = {
        pair.find_element("css selector", "dt").text: pair.text.split()[-1] for pair in browser.all("#detail dl > *")
    }
    assert numbers["iterations"] == str(record.iterations)
    assert float(numbers["L2"]) == pytest.approx(record.l2, rel=0.01)
    assert float(numbers["p after"]) == pytest.approx(record.p_after, rel=0.01)
    assert {"p attack", "L∞", "repainted", "seconds", "seed"} <= numbers.keys()
    captions = [caption.text for caption in browser.all("#detail figcaption")]
    assert captions == ["original | counterfactual", "change", "mask", "before refinement"]


def test_hostile_names_and_reasons_stay_text(browser, report):
    browser.open(report)
    assert NAMES[1] in browser.one(".direction").text + browser.all(".target")[0].text
    browser.choose("outcome", "failed")
    assert browser.one(".why").text == REASON
    browser.one(".open").click()
    assert browser.one("#detail .why").text == REASON
    assert browser.driver.title == "one: counterfactual explanations"


def test_the_command_can_be_copied(browser, report):
    browser.open(report)
    browser.one("#reproduce summary").click()
    button, command = browser.one("#reproduce button"), browser.one("#reproduce code").text
    assert command.startswith("python explain.py generate --config ")
    button.click()
    browser.until(lambda: button.text == "Copied" or browser.js("return String(getSelection())") == command)


# --- several runs


def test_runs_stand_side_by_side(browser, comparison, stores):
    browser.open(comparison)
    names = [store.folder.name for store in stores]
    browser.choose("outcome", "flipped")
    card = browser.one("#cards > li")
    assert [run.text for run in card.find_elements("css selector", "h3")] == names
    left, right = (view.rect for view in card.find_elements("css selector", ".view"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    shown = browser.js(
        "const after = [...document.querySelectorAll('#cards > li:first-child .after')];"
        "await Promise.all(after.map((image) => image.decode()));"
        "return after.map((image) => image.src)"
    )
    id = browser.ids()[0]
    assert shown == [store.image_path("counterfactual", id).as_uri() for store in stores]
    browser.one(".open").click()
    assert [run.text for run in browser.all("#detail h3")] == names


def test_a_comparison_goes_by_the_run_that_is_asked_for(browser, comparison, stores):
    browser.open(comparison)
    one, two = (store.records() for store in stores)
    browser.choose("outcome", "not_flipped")
    for index, run in enumerate((one, two)):
        browser.choose("run", str(index))
        expected = [record.id for record in run if record.status == "not_flipped"]
        assert browser.ids() == expected[:PAGE]
    browser.choose("sort", "l1")
    assert browser.ids() == [id for id in ordered(two, "l1") if id in expected][:PAGE]
    browser.choose("outcome", "differs")
    different = {first.id for first, second in zip(one, two, strict=True) if first.flipped != second.flipped}
    assert set(browser.ids()) == different
    assert different


def test_the_runs_of_a_comparison_are_linked(browser, comparison, stores):
    browser.open(comparison)
    browser.all("header a")[1].click()
    browser.until(lambda: browser.driver.title == f"{stores[1].folder.name}: counterfactual explanations")


# --- for everybody


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_nothing_is_wider_than_a_phone(browser, page, request):
    browser.open(request.getfixturevalue(page), width=360)
    browser.js("for (const more of document.querySelectorAll('details')) more.open = true")
    assert browser.js("return document.documentElement.scrollWidth") <= 360
    browser.one(".open").click()
    assert browser.js("return document.querySelector('#detail').scrollWidth") <= 360
    assert browser.one("#detail .compare").rect["width"] > 300


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser, report, scheme):
    browser.open(report, scheme=scheme)
    browser.js("for (const more of document.querySelectorAll('details')) more.open = true")
    assert browser.js(PALE) == []
    browser.one(".open").click()
    assert browser.js(PALE) == []
    dark = browser.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 128")
    assert dark == (scheme == "dark")


def test_everything_has_a_name_for_those_who_do_not_see_it(browser, comparison):
    browser.open(comparison)
    browser.choose("sort", "iterations")
    controls = browser.all(
        "#controls :is(input, select), #pager :is(input, button), #cards > li:first-child :is(input, button)"
    )
    assert len(controls) > 10
    assert all(control.accessible_name for control in controls)
    browser.one(".open").click()
    assert all(control.accessible_name for control in browser.all("#detail :is(button, input)"))
    assert browser.js("return [...document.images].every((image) => image.alt)")
    assert browser.js("return document.documentElement.lang") == "en"
    assert browser.one("#detail").accessible_name == browser.one("#detail h2").text


def test_focus_can_be_seen(browser, report):
    browser.open(report)
    seen = "return getComputedStyle({}).outlineStyle"
    for _ in range(20):
        browser.press(Keys.TAB)
        focused = "document.activeElement"
        if browser.js(f"return {focused}.type === 'range'"):
            focused += ".closest('.compare')"
        assert browser.js(seen.format(focused)) != "none", browser.js("return document.activeElement.outerHTML")


def test_thousands_of_images_are_there_at_once(browser, tmp_path):
    store = RunStore.create(tmp_path, {}, {"decision": {"class_names": ["cat", "dog"]}})
    with patch("os.fsync", lambda _: None):
        for index in range(5000):
            append_record(tmp_path / "records.rank0.jsonl", explained(f"{index:04d}"), store.settings_hash)
    browser.open(write_report(store))
    assert len(browser.ids()) == PAGE
    assert browser.one("#pager .pages").text == "105"
    paint = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    assert browser.until(lambda: browser.js(paint)) < 2000, "milliseconds"
