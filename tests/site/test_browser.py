"""The pages in a browser: search, filter, follow, theme, phone, keyboard, contrast.

Needs Chromium and playwright; neither downloads anything.
"""

import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 800}
CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => rgba(colour).slice(0, 3)
    .map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (rgba(colour)[3] === 255) return colour;
    }
    return "white";
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const says = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!says || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, element.className || element.tagName]);
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """A page of a browser of one's own; at the end nothing may have gone wrong or left the disk."""
    contexts, wrong = [], []

    def request(asked):
        if not asked.url.startswith(("file://", "data:")):
            wrong.append(asked.url)

    def failed(asked):
        if asked.failure != "net::ERR_ABORTED":  # the reader went on before it was there
            wrong.append(f"{asked.url}: {asked.failure}")

    def opened(path, viewport=DESKTOP, scheme="light", **options):
        context = chromium.new_context(viewport=viewport, color_scheme=scheme, **options)
        contexts.append(context)
        context.on("request", request)
        context.on("requestfailed", failed)
        context.on("console", lambda message: wrong.append(message.text))
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        page = context.new_page()
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def shown(page):
    return page.locator(".papers > li:visible h2").all_text_contents()


def test_search_filter_and_follow_a_paper(site, visit):
    page = visit(site / "index.html")
    assert len(shown(page)) == 4
    page.get_by_label("Search").fill("  BARE  ada ")
    assert shown(page) == ["A bare paper"]
    assert page.get_by_role("status").text_content() == "1 found"
    page.get_by_label("Search").fill("no such words")
    assert shown(page) == []
    assert page.get_by_role("status").text_content() == "nothing matches"
    page.get_by_label("Search").fill("")
    page.get_by_label("Field").select_option("graphs")
    assert shown(page) == ["Many on one table"]
    page.get_by_label("Field").select_option("")
    assert page.get_by_role("status").text_content() == "4 found"
    page.get_by_role("link", name="A bare paper").click()
    page.wait_for_url("**/papers/bare.html")
    assert page.get_by_role("heading", level=1).text_content() == "A bare paper"
    page.get_by_role("link", name="paperworks", exact=True).click()
    page.wait_for_url("**/index.html*")
    assert len(shown(page)) == 4


def test_who_comes_back_finds_the_list_that_the_search_box_says(site, visit):
    page = visit(site / "index.html")
    page.get_by_label("Search").fill("bare")
    page.get_by_role("link", name="A bare paper").click()
    page.wait_for_url("**/papers/bare.html")
    page.go_back()
    assert len(shown(page)) == (1 if page.get_by_label("Search").input_value() else 4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_until_chosen_and_then_stays(site, visit, scheme):
    page = visit(site / "index.html", scheme=scheme)
    button = page.get_by_role("button", name="Dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    assert button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    button.click()
    after = page.evaluate(ground)
    assert after != before
    page.get_by_role("link", name="A bare paper").click()
    page.wait_for_url("**/papers/bare.html")  # loaded whole: it has a body to look at
    assert page.evaluate(ground) == after
    assert page.get_by_role("button", name="Dark").get_attribute("aria-pressed") == (
        str(scheme == "light").lower()
    )


@pytest.mark.parametrize("which", ["site", "shipped_site"])
def test_no_page_scrolls_sideways_on_a_phone(which, request, visit):
    folder = request.getfixturevalue(which)
    for path in sorted(folder.rglob("*.html")):
        page = visit(path, PHONE)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path.name


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "papers/sample", "papers/bare", "papers/aged"])
def test_every_text_has_the_contrast_that_wcag_aa_asks(site, visit, scheme, name):
    page = visit(site / f"{name}.html", scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    found = page.evaluate(CONTRAST)
    assert len(found) > 10
    assert [entry for entry in found if entry[0] < 4.5] == []


def test_keyboard_alone(site, visit):
    page = visit(site / "index.html")
    active = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{active}.textContent") == "Skip to the content"
    assert page.evaluate(f"{active}.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate(f"{active}.id") == "content"
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(f"{active}.id || {active}.textContent"))
    assert reached[:2] == ["words", "field"]
    assert page.evaluate(f"getComputedStyle({active}.closest('.card')).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/*.html")
    assert page.get_by_role("heading", level=1).text_content() == reached[2]


def test_without_scripts_it_is_a_plain_list(site, visit):
    page = visit(site / "index.html", java_script_enabled=False)
    assert len(shown(page)) == 4
    assert not page.get_by_label("Search").is_visible()
    assert not page.locator("#theme").is_visible()


def test_pictures_load_and_their_numbers_open(site, visit):
    page = visit(site / "papers" / "sample.html")
    for picture in page.locator("figure img").all():
        picture.scroll_into_view_if_needed()
        page.wait_for_function("(image) => image.naturalWidth > 0", arg=picture.element_handle())
    table = page.get_by_role("table").first
    assert not table.is_visible()
    page.get_by_text("The numbers").first.click()
    assert table.is_visible()
