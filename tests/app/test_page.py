"""`rs-rlhf app` in a real browser: choosing by keys through a kill, and (slow) asking, ranking, scoring, uploading."""

import json
import os

import httpx
import pytest
from helpers import picture
from helpers.pages import Served
from PIL import Image

from rs_rlhf.data.group import completion_text
from rs_rlhf.preferences.reader import read_groups

HOSTILE = "<img src=x onerror='window.hacked = 1'> & </script><script>window.hacked = 1</script>"


def write_pairs(folder, count=8):
    rows = []
    for i in range(count):
        picture(i).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": f"Which {i}?", "chosen": f"good {i}", "rejected": f"bad {i}"})
    rows[0]["chosen"] = HOSTILE
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


def wait(browser, script, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds).until(lambda it: it.execute_script(f"return {script}"))


def opened(browser, url, tab=None):
    browser.get(url)
    wait(browser, "document.querySelector('h1')")
    if tab is not None:
        wait(browser, f"[...document.querySelectorAll('button[role=tab]')].some(b => b.innerText.includes('{tab}'))")
        browser.execute_script(
            "[...document.querySelectorAll('button[role=tab]')].find(b => b.innerText.includes(arguments[0])).click()",
            tab,
        )


def typed(browser, name, text):
    from selenium.webdriver import Keys

    field = wait(browser, f"document.querySelector('#{name} textarea, #{name} input')")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)


def clicked(browser, name):
    button = wait(browser, f"document.querySelector('button#{name}, #{name} button')")
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", button)
    button.click()


def text_of(browser, name):
    return browser.execute_script(f"return document.querySelector('#{name}')?.innerText || ''")


def outside(browser, url):
    """What was asked of any other place than the page's own server, and what the page complained of."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    own = (url, f"blob:{url}", "data:", "about:")
    return [one for one in asked if not one.startswith(own)], [one["message"] for one in browser.get_log("browser")]


def shown(browser, done):
    """Waits until so many pairs are done; returns the question and the texts on either side."""
    wait(browser, f"document.querySelector('#progress')?.innerText.startsWith('{done} of ')")
    return [text_of(browser, name) for name in ("pair_question", "side_left", "side_right")]


def press(browser, key):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(key).perform()


def begin(browser, url, name, done=0, tab=None):
    from selenium.webdriver import Keys

    opened(browser, url, tab)
    wait(browser, "document.querySelector('#pair_question')?.innerText")
    typed(browser, "annotator", name + Keys.ENTER)
    before = shown(browser, done)
    browser.execute_script("document.activeElement.blur()")
    return before


def test_choosing_by_keys_through_a_reload_and_a_kill(browser, tmp_path):
    from selenium.webdriver import Keys

    pairs, log = write_pairs(tmp_path), tmp_path / "pairs.choices.jsonl"
    command = ("app", "--label", pairs, "--score_model", "none")
    with Served(*command) as page:
        assert page.client.get("/", headers={"Host": "example.org"}).status_code == 403
        assert page.client.post("/gradio_api/upload", headers={"Origin": "http://example.org"}).status_code == 403
        seen = [begin(browser, page.url, "ann")]
        for done, key in enumerate((Keys.ARROW_LEFT, "2", "t", "b"), start=1):
            press(browser, key)
            seen.append(shown(browser, done))
        assert len({question for question, _, _ in seen}) == 5
        press(browser, "u")
        assert shown(browser, 3) == seen[3]
        press(browser, Keys.ARROW_RIGHT)
        assert shown(browser, 4) == seen[4]
        typed(browser, "annotator", "ann")  # keys that are typed choose nothing
        browser.refresh()  # the name and the place are there again
        assert shown(browser, 4) == seen[4]
        assert outside(browser, page.url) == ([], [])
        assert browser.execute_script("return window.hacked === undefined && !document.querySelector('img[src=x]')")
        kept = log.read_bytes()
        page.kill()
    with Served(*command) as page:
        assert log.read_bytes() == kept
        assert begin(browser, page.url, "ann", 4) == seen[4]
        begin(browser, page.url, "bob")
        press(browser, "1")
        shown(browser, 1)
    records = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    assert [(one["annotator"], one["choice"] in ("a", "b"), one["choice"]) for one in records[2:6]] == [
        ("ann", False, "tie"),
        ("ann", False, "both_bad"),
        ("ann", False, "undo"),
        ("ann", True, records[5]["choice"]),
    ]
    preferred = [group.group for _, _, group in read_groups(str(tmp_path / "pairs.preferred.jsonl"))]
    # What was on the left is chosen, then what was on the right; the third pair is a tie.
    expected = {seen[0][1].removeprefix("Left").strip(), seen[1][2].removeprefix("Right").strip()}
    expected |= {seen[3][2].removeprefix("Right").strip()}
    assert {completion_text(group.completions[0]) for group in preferred} == expected


@pytest.fixture(scope="module")
def whole(tmp_path_factory, policy_path, score_model_path):
    folder = tmp_path_factory.mktemp("app")
    pairs = write_pairs(folder)
    options = ("--policy", policy_path, "--policy_b", policy_path, "--score_model", score_model_path)
    limits = ("--max_new_tokens", 6, "--max_bytes", 200_000, "--max_image_pixels", 90_000)
    with Served("app", *options, *limits, "--label", pairs) as page:
        yield page


@pytest.mark.slow
def test_asking_ranking_and_scoring(browser, whole):
    opened(browser, whole.url, "Ask")
    clicked(browser, "ask")
    wait(browser, "document.querySelectorAll('#answers li').length === 2")
    assert "Policy A" in text_of(browser, "answers") and "Policy B" in text_of(browser, "answers")
    opened(browser, whole.url, "Best of N")
    clicked(browser, "best")
    wait(browser, "document.querySelector('#ranking')?.innerText.includes('A majority would have')")
    values = browser.execute_script("return [...document.querySelectorAll('#ranking .value')].map(e => e.innerText)")
    scores = [float(value.replace("−", "-")) for value in values]
    assert scores == sorted(scores, reverse=True) and len(scores) > 1
    opened(browser, whole.url, "Score captions")
    typed(browser, "score_texts", f"a river .\ntwo planes .\n{HOSTILE}\na river .")
    clicked(browser, "score")
    wait(browser, "document.querySelectorAll('#scores li').length === 3")
    clicked(browser, "map")
    wait(browser, "document.querySelector('#map_picture img')?.naturalWidth > 0")
    assert "8 × 8 patches" in text_of(browser, "map_words")
    assert browser.execute_script("return window.hacked === undefined && !document.querySelector('img[src=x]')")
    assert outside(browser, whole.url) == ([], [])


@pytest.mark.slow
def test_an_uploaded_geotiff_is_read_as_asked_and_limits_hold(browser, whole, tmp_path):
    import numpy as np

    rasterio = pytest.importorskip("rasterio")
    bands = np.random.default_rng(0).integers(0, 4000, (5, 40, 60), dtype=np.uint16)
    with rasterio.open(tmp_path / "s2.tif", "w", driver="GTiff", width=60, height=40, count=5, dtype="uint16") as file:
        file.write(bands)
    Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
    Image.effect_noise((600, 500), 90).save(tmp_path / "heavy.png")
    opened(browser, whole.url, "Ask")
    field = wait(browser, "document.querySelector('#upload input[type=file]')")
    field.send_keys(str(tmp_path / "s2.tif"))
    told = "[...document.querySelectorAll('.toast-body')].map(e => e.innerText).join()"
    wait(browser, f"{told}.includes('bands') && {told}.includes('s2.tif')")
    clicked(browser, "ask")
    wait(browser, f"{told}.includes('choose a tile')")
    assert browser.execute_script(f"return {told}.includes('/tmp')") is False
    browser.execute_script("document.querySelector('#reading button').click()")
    wait(browser, "document.querySelector('#bands input, #bands textarea')?.getClientRects().length")
    typed(browser, "bands", "4 3 2")
    browser.execute_script("document.querySelectorAll('#stretch input')[2].click()")
    typed(browser, "range", "0 4000")
    clicked(browser, "read_again")
    wait(browser, "document.querySelector('#tile img')?.naturalWidth === 60")
    clicked(browser, "ask")
    wait(browser, "document.querySelectorAll('#answers li').length === 2")
    for name, sentence in (("large.png", "max_image_pixels"), ("heavy.png", "size")):
        opened(browser, whole.url, "Ask")
        wait(browser, "document.querySelector('#upload input[type=file]')").send_keys(str(tmp_path / name))
        wait(browser, f"document.body.innerText.includes('{sentence}')")


@pytest.mark.slow
def test_the_least_certain_pair_comes_first_and_agreement_is_shown(browser, whole):
    for name in ("ann", "bob"):
        begin(browser, whole.url, name, tab="Label")
        for done in (1, 2, 3):
            press(browser, "1")
            shown(browser, done)
    browser.execute_script("document.querySelector('#agreement button').click()")
    clicked(browser, "write")
    wait(browser, "document.querySelector('#agreement_table')?.innerText.includes('Cohen')")
    text = text_of(browser, "agreement_table")
    assert "3 preferences ->" in text and "100%" in text and "score model agrees" in text


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_fits_in_both_schemes(browser, whole, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for tab in ("Ask", "Label"):
            opened(browser, whole.url)
            wait(browser, "document.querySelector('button[role=tab]')")
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), tab
        dark = browser.execute_script("return document.body.classList.contains('dark')")
        assert dark == (scheme == "dark")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.slow
def test_a_token_is_asked_for_when_one_is_set(tmp_path):
    pairs = write_pairs(tmp_path)
    env = {"RS_RLHF_SERVER_TOKEN": "geheim"}
    with Served("app", "--label", pairs, "--score_model", "none", env=env) as page:
        assert page.client.get("/").status_code == 401
        assert httpx.get(page.url, auth=("ann", "geheim")).status_code == 200
        assert os.path.exists(tmp_path / "pairs.choices.jsonl")
