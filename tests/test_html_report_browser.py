"""The page of a choice in a headless Chromium: hover, click, keys, filters, sorting, saving, light, dark and narrow."""
import csv
import os
import shutil

import numpy as np
import pytest
from html_pages import HOSTILE, choice, names_of, written

CHROMIUM = os.environ.get("DIFFPRUNE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
     reason="there is no Chromium: install it (apt-get install chromium), or name it in DIFFPRUNE_CHROMIUM")
N = 60


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def grid():
    "Places of images on a lattice of 10 × 6, the first at the upper left."
    return np.stack([np.arange(N) % 10, -(np.arange(N) // 10)], 1).astype(float)


@pytest.fixture
def visit(browser, tmp_path, grid):
    "visit(table, ...) opens a page that has no network; what it asks for and complains of must be nothing."
    opened, complaints = [], []
    def open_page(table=None, color_scheme="light", width=1280, height=900, **options):
        _, data = written(tmp_path, table, **dict(layout=grid) | options)
        context = browser.new_context(
    color_scheme=color_scheme,
    viewport=dict(
        width=width,
        height=height),
        offline=True,
         accept_downloads=True)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: complaints.append(request.url[:80]) if not request.url.startswith(("file:", "data:")) else None)
        page.goto((tmp_path / "page.html").as_uri())
        opened.append(context)
        page.names = names_of(data)
        return page
    yield open_page
    for context in opened: context.close()
    assert complaints == []


def place(page, i, grid):
    "Where image i is on the screen."
    page.locator("#canvas").scroll_into_view_if_needed()
    box, low, high, margin = page.locator("#canvas").bounding_box(), grid.min(0), grid.max(0), 14
    x, y = (grid[i] - low) / (high - low)
    return box["x"] + 1 + margin + x * (box["width"] - 2 - 2 * margin), box["y"] + 1 + margin + (1 - y) * (box["height"] - 2 - 2 * margin)


def count(page): return page.locator("#count").inner_text()


def colours_at(page, *places):
    "The colours of the map at places on the screen, read in one go."
    return page.evaluate("""places => { const c = document.getElementById("canvas"), b = c.getBoundingClientRect(), r = devicePixelRatio;
        const all = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        const at = ([x, y]) => 4 * (Math.round((y - b.top - 1) * r) * c.width + Math.round((x - b.left - 1) * r));
        return places.map(p => [...all.slice(at(p), at(p) + 3)]); }""", places)


@pytest.mark.parametrize("i", [0, 17, 59])
def test_hover_shows_the_image_under_the_pointer_and_a_click_holds_it(visit, grid, i):
    page = visit()
    tip, held = page.locator("#tip"), page.locator("#held")
    assert tip.is_hidden()
    page.mouse.move(*place(page, i, grid))
    assert page.names[i] in tip.inner_text() and ("kept" if i % 2 == 0 else "pruned: pruned by toy") in tip.inner_text()
    assert tip.locator("img").get_attribute("src").startswith("data:image/webp;base64,")
    assert tip.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 16
    assert page.names[i] not in held.inner_text()
    page.mouse.down(); page.mouse.up()
    assert page.names[i] in held.inner_text() and held.locator("img").count() == 1
    page.mouse.move(5, 5)
    assert tip.is_hidden() and page.names[i] in held.inner_text()
    assert page.locator(f'.im[data-i="{i}"]').first.get_attribute("aria-pressed") == "true"


def test_a_picture_anywhere_can_be_held(visit):
    page = visit()
    page.locator('[data-strip="cut_pruned"] .im').nth(3).click()
    shown = page.locator('[data-strip="cut_pruned"] .im').nth(3).get_attribute("aria-label").split(",")[0]
    assert shown in page.locator("#held").inner_text()


def test_an_image_leads_to_the_one_that_stays_in_its_place(visit, grid):
    names = choice().id
    page = visit(choice(duplicate_of=["", names[0]] + [""] * 58))
    page.mouse.click(*place(page, 1, grid))
    page.get_by_role("button", name="The image that stays in its place").click()
    assert names[0] in page.locator("#held").inner_text()


@pytest.mark.parametrize("control, value, matches", [ ("#f-kept", "kept", lambda i: i %
    2 == 0), ("#f-kept", "pruned", lambda i: i %
    2 == 1), ("#f-label", "bee", lambda i: i %
    3 == 1), ("#f-cluster", "2", lambda i: i //
    3 %
    4 == 2), ("#f-reason", "pruned by toy", lambda i: i %
    2 == 1), ("#f-name", "F2/003", lambda i: i %
     3 == 2 and 30 <= i < 40)], ids=lambda v: v if isinstance(v, str) else "")
def test_filter(visit, grid, control, value, matches):
    page = visit()
    page.locator(control).fill(value) if control == "#f-name" else page.locator(control).select_option(label=value)
    wanted = [i for i in range(N) if matches(i)]
    assert count(page).startswith(f"{len(wanted)} of 60 images: {sum(i % 2 == 0 for i in wanted)} kept")
    listed = page.locator("#gallery .im").evaluate_all("all => all.map(b => Number(b.dataset.i))")
    assert listed == wanted
    page.mouse.move(*place(page, wanted[0], grid))
    assert page.names[wanted[0]] in page.locator("#tip").inner_text()
    other = next(i for i in range(N) if i not in wanted)
    page.mouse.move(*place(page, other, grid))
    assert page.locator("#tip").is_hidden(), "what the filter leaves out cannot be pointed at"
    page.get_by_role("button", name="Show all again").click()
    page.wait_for_function("document.getElementById('count').textContent.startsWith('60 of 60')")


def test_filters_add_up_and_nothing_may_match(visit):
    page = visit()
    page.locator("#f-label").select_option(label="cat")
    page.locator("#f-cluster").select_option(label="0")
    page.locator("#f-kept").select_option(label="kept")
    wanted = [i for i in range(N) if i % 3 == 2 and i // 3 % 4 == 0 and i % 2 == 0]
    assert count(page).startswith(f"{len(wanted)} of 60 images")
    page.locator("#f-name").fill("no such name")
    assert count(page).startswith("0 of 60 images") and page.locator("#save").is_disabled()
    assert "None of these images" in page.locator("#gallery").inner_text()


def test_the_list_of_a_filter_is_saved(visit, tmp_path):
    page = visit(choice(len(HOSTILE), id=HOSTILE), layout=np.random.default_rng(0).normal(size=(len(HOSTILE), 2)))
    page.locator("#f-kept").select_option(label="pruned")
    with page.expect_download() as download: page.locator("#save").click()
    download.value.save_as(tmp_path / "saved.csv")
    with open(tmp_path / "saved.csv", newline="", encoding="utf-8") as file: rows = list(csv.reader(file))
    assert download.value.suggested_filename == "images.csv"
    assert rows == [["id"], *([name.replace("\udce9", "\\xe9")] for name in HOSTILE[1::2])]


def test_names_run_nothing(visit):
    n = len(HOSTILE)
    page = visit(
    choice(
        n,
        id=HOSTILE,
        label=HOSTILE,
        reason=HOSTILE),
        layout=np.random.default_rng(0).normal(
            size=(
                n,
                2)),
                title=HOSTILE[3],
                 how=HOSTILE[4])
    for i in range(n):
        page.locator(f'#gallery .im[data-i="{i}"]').click()
        name = page.locator("#held dd").first.text_content()
        assert name == HOSTILE[i].replace("\udce9", "\\xe9")
    assert page.evaluate("window.hacked === undefined && document.querySelectorAll('script').length") == 2
    assert page.locator("h1").inner_text() == HOSTILE[3]


def test_the_map_works_by_keys(visit, grid):
    page = visit()
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#tip dd").first.inner_text()
    page.keyboard.press("ArrowRight")
    second = page.locator("#tip dd").first.inner_text()
    assert page.names.index(second) == page.names.index(first) + 1
    page.keyboard.press("ArrowDown")
    below = page.locator("#tip dd").first.inner_text()
    assert page.names.index(below) == page.names.index(second) + 10
    page.keyboard.press("Enter")
    assert below in page.locator("#held").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_zoom_and_drag_move_the_map(visit, grid):
    page = visit()
    at = place(page, 0, grid)
    page.locator("#in").click(); page.locator("#in").click()
    page.mouse.move(*at)
    assert page.locator("#tip").is_hidden() or page.names[0] not in page.locator("#tip").inner_text()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 200); page.mouse.down()
    page.mouse.move(box["x"] + 880, box["y"] + 560, steps=4); page.mouse.up()
    assert "No image is held" in page.locator("#held").inner_text(), "dragging is no click"
    page.mouse.move(*at)
    assert page.names[0] in page.locator("#tip").inner_text(), "the corner was dragged back to its place"
    page.locator("#whole").click()
    page.mouse.move(*place(page, 59, grid))
    assert page.names[59] in page.locator("#tip").inner_text()


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_kept_and_pruned_have_their_colours_in_light_and_dark(visit, grid, color_scheme):
    page = visit(color_scheme=color_scheme)
    page.wait_for_timeout(200)
    wanted = dict(light=[(0, 99, 166), (184, 71, 0)], dark=[(86, 180, 233), (240, 160, 48)])[color_scheme]
    assert [tuple(c) for c in colours_at(page, *(place(page, i, grid) for i in (24, 25)))] == wanted
    def luminance(rgb):
        parts = [v / 255 / 12.92 if v / 255 <= 0.03928 else ((v / 255 + 0.055) / 1.055)**2.4 for v in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    computed = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, paper = (luminance([int(v) for v in c[4:-1].split(",")]) for c in computed)
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
    assert (ink > paper) == (color_scheme == "dark")
    for rgb in wanted: assert (max(luminance(rgb), paper) + 0.05) / (min(luminance(rgb), paper) + 0.05) > 4.5


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_scrolls_sideways(visit, width):
    page = visit(choice(id=[f"{i:03d}" + "x" * 300 for i in range(N)]), width=width, title="t" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#canvas").bounding_box()["width"] > 0.6 * width - 60


def test_tables_are_sorted_by_any_column(visit):
    kept = [i < 40 and i % 3 != 0 for i in range(N)]
    page = visit(choice(kept=kept))
    table = page.locator("table.sortable").first
    column = lambda k: table.locator(f"tbody tr :nth-child({k})").all_inner_texts()
    for k in (3, 7):
        for order, reverse in (("descending", True), ("ascending", False)):
            table.locator("thead button").nth(k - 1).click()
            values = [float(v.rstrip(" %")) for v in column(k)]
            assert values == sorted(values, reverse=reverse)
            assert table.locator("thead th").nth(k - 1).get_attribute("aria-sort") == order
    table.locator("thead button").first.click(); table.locator("thead button").first.click()
    assert table.locator("tbody th").all_inner_texts() == ["ant", "bee", "cat"]
    assert table.locator("tbody tr.gone").all_inner_texts()[0].startswith("ant")


def test_everything_that_can_be_used_has_a_name(visit):
    page = visit()
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    unnamed = page.evaluate("""[...document.querySelectorAll("button, select, input, canvas, [role=group], [role=region]")].filter(e =>
        !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.textContent.trim() || (e.labels && e.labels.length))
        ).map(e => e.outerHTML.slice(0, 90))""")
    assert unnamed == []
    assert page.evaluate("[...document.images].every(i => i.hasAttribute('alt'))")
    assert page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1])).every((v, k, all) => !k || v <= all[k - 1] + 2)")


def test_without_scripts_numbers_and_sentences_are_there(browser, tmp_path, grid):
    written(tmp_path, choice(label=["rare"] + ["often"] * 59, kept=[False] + [True] * 59), layout=grid)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    text = page.locator("body").inner_text()
    context.close()
    for said in ("Scripts are off", "Of 60 images, 59 are kept", "1 class out of 2: rare", "How to undo it"): assert said in text


def test_a_page_without_a_map_can_be_filtered(visit):
    page = visit(layout="tsne")
    assert page.locator("#canvas").count() == 0
    page.locator("#f-label").select_option(label="ant")
    assert count(page).startswith("20 of 60 images")
    page.locator("#gallery .im").first.click()
    assert "f0/0000.png" in page.locator("#held").inner_text()


def test_a_hundred_thousand_points_can_be_hovered_and_filtered(visit):
    n, rng = 100_000, np.random.default_rng(0)
    xy = rng.normal(size=(n, 2))
    page = visit(choice(n), layout=xy, max_thumbnails=500)
    box = page.locator("#canvas").bounding_box()
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "name" in page.locator("#tip").inner_text() and page.locator("#tip img").count() == 1, "one with a picture is preferred"
    page.locator("#f-label").select_option(label="bee")
    assert count(page).startswith("33,333 of 100,000 images")
    assert page.locator("#gallery .im").count() == 60
    page.locator("#more").click()
    assert page.locator("#gallery .im").count() == 120
