"""What a reader clicks: filters, the slider, lines, and links to runs, in a headless Chromium."""

import json
import re
import subprocess
from functools import partial
from html import unescape

import pytest
from chromium import CHROMIUM, browser
from report_factory import base_frame, frame, make_base, make_run, spread

from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.html import html
from sdpo_bench.results.read_results import load_results

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=5000", "--dump-dom")
REWARDS = ("emoji-align", "emoji-accuracy")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
PROBE = """<script>
const visible = (query) => [...document.querySelectorAll(query)].filter((one) => !one.hidden);
const shown = (query) => visible(query).map((one) => one.dataset.method);
const rows = "#setting-1-1-leaderboard-1 tbody tr";
const said = {before: shown(rows)};
const method = document.querySelector('[data-filter="method"]');
const pick = (select, value) => { select.value = value; select.dispatchEvent(new Event("change")); };
const figure = figures.get(document.querySelector(".plot"));
figure.draw();
pick(method, "ddpo");
said.filtered = shown(rows);
const pressed = figure.buttons.filter((one) => one.getAttribute("aria-pressed") === "true");
said.lines = pressed.map((one) => one.dataset.label);
said.status = document.getElementById("filtered").textContent;
pick(method, "");
said.after = shown(rows);
figure.buttons[0].click();
said.pressed = figure.buttons[0].getAttribute("aria-pressed");
const details = figure.box.querySelector("details");
details.open = true;
const link = document.querySelector("#runs a");
location.hash = link.getAttribute("href");
const named = [...document.querySelectorAll("select, input, [role=img], button")];
said.unnamed = named.filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length)).length;
setTimeout(() => {
  const run = document.getElementById(link.getAttribute("href").slice(1));
  said.open = run.open;
  said.config = run.querySelectorAll("li").length;
  said.values = details.querySelectorAll("tbody tr").length;
  document.body.dataset.said = JSON.stringify(said);
}, 1000);
</script></body>"""


def _report(folder):
    make_base(folder, base_frame(spread([0, 0, 0])))
    for seed in range(2):
        for method, gain in (("sdpo", 2), ("ddpo", 1)):
            make_run(folder, method, seed, spread([gain + 0.1 * seed] * 3))
    return build_report(load_results(folder), Request())


def test_two_pages_of_the_same_results_are_equal(tmp_path):
    assert html(_report(tmp_path)) == html(build_report(load_results(tmp_path), Request()))


def test_every_run_links_to_its_section(tmp_path):
    page = html(_report(tmp_path))
    links = set(re.findall(r'href="#(run-[^"]+)"', page))
    assert len(links) == 4
    assert links == set(re.findall(r'<details class="run" id="([^"]+)"', page))


@needs_chromium
def test_filters_lines_and_run_links_work(tmp_path):
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html(_report(tmp_path / "results")))
    target = tmp_path / "page.html"
    target.write_text(page.replace("</body>", PROBE), encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", target.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.search(r'data-said="([^"]*)"', dom)
    assert match, dom[-500:]
    said = json.loads(unescape(match[1]))
    assert said["before"] == said["after"] == ["sdpo", "ddpo", "base model"]
    assert said["filtered"] == ["ddpo", "base model"]
    assert said["lines"] == ["ddpo"]
    assert said["status"] == "Shown: method ddpo"
    assert said["pressed"] == "false"
    assert said["open"] and said["config"] > 10
    assert said["values"] == 6  # two lines of three step counts
    assert said["unnamed"] == 0


def _four_settings(folder):
    """A setting with a picture grid, and three that differ from it in reward, in model and in prompts."""
    from PIL import Image

    for model, name in (("emoji-turbo", "base-emoji_turbo-0"), ("sd-turbo", "base-sd_turbo-0")):
        base = make_base(folder, *(base_frame(spread([0, 0, 0]), reward=reward) for reward in REWARDS), name=name)
        record = json.loads((base / "run.json").read_text())
        record["config"]["model"]["name"] = model
        (base / "run.json").write_text(json.dumps(record))
    run = make_run(folder, "sdpo", 0, spread([2, 2, 2]))
    make_run(folder, "ddpo", 0, spread([1, 1, 1]))
    make_run(folder, "sdpo", 0, spread([1, 1, 1]), reward="emoji-accuracy")
    make_run(folder, "sdpo", 0, spread([1, 1, 1]), **{"model.name": "sd-turbo"})
    make_run(folder, "sdpo", 0, spread([1, 1, 1]), **{"sample.prompts": "complex-animals"})
    Image.new("RGB", (190 + 3 * 100, 22 + 10 * 100)).save(run / "grid.png")
    return build_report(load_results(folder), Request())


@pytest.fixture
def tab(tmp_path):
    """The page of four settings, with the policy that real pages have."""
    target = tmp_path / "page.html"
    target.write_text(html(_four_settings(tmp_path / "results")), encoding="utf-8")
    with browser(tmp_path / "profile") as opened:
        opened.open(target.as_uri())
        yield opened


SHOWN = """[...document.querySelectorAll("article[data-setting]")].filter((one) => !one.hidden).map(
  (one) => [one.dataset.reward, one.dataset.model, one.dataset.prompts])"""
FIRST, REWARD, MODEL, PROMPTS = (
    ["emoji-align", "emoji-turbo", "simple-animals"],
    ["emoji-accuracy", "emoji-turbo", "simple-animals"],
    ["emoji-align", "sd-turbo", "simple-animals"],
    ["emoji-align", "emoji-turbo", "complex-animals"],
)


@needs_chromium
@pytest.mark.parametrize(
    ("key", "value", "left"),
    [
        ("reward", "emoji-accuracy", [REWARD]),
        ("reward", "emoji-align", [FIRST, MODEL, PROMPTS]),
        ("model", "sd-turbo", [MODEL]),
        ("prompts", "complex-animals", [PROMPTS]),
    ],
)
def test_a_filter_leaves_the_settings_of_its_value(tab, key, value, left):
    assert sorted(tab.value(SHOWN)) == sorted([FIRST, REWARD, MODEL, PROMPTS])
    choose = f"""(() => {{ const one = document.querySelector('[data-filter="{key}"]');
      one.value = "{value}"; one.dispatchEvent(new Event("change")); }})()"""
    tab.value(choose)
    assert sorted(tab.value(SHOWN)) == sorted(left)
    assert tab.value('document.getElementById("filtered").textContent') == f"Shown: {key} {value}"
    assert tab.value('document.querySelectorAll("section.first:not([hidden])").length') == len(left)


UNDER = """[...document.querySelectorAll("table.tiles")].flatMap((table) => {
  const [base, ...others] = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll(".over")]);
  return others.flatMap((row) => row.map((over, at) => over.previousSibling.src === base[at].src));
})"""


@needs_chromium
def test_the_base_model_s_picture_lies_under_every_method_s(tab):
    found = tab.value(UNDER)
    assert len(found) == 5 * 3 and all(found)  # prompts times step counts of the one run with pictures


GAIN = """(() => { const figure = figures.get(document.querySelector(".first .plot")), [plot] = figure.plots;
  return [plot.scales.y.min, plot.scales.y.max, figure.boxes[0].textContent]; })()"""


@needs_chromium
def test_the_axis_of_a_gain_has_0_and_one_seed_is_named(tmp_path):
    make_base(tmp_path / "results", base_frame(spread([0, 0, 0])))
    make_run(tmp_path / "results", "sdpo", 0, spread([0.036, 0.044, 0.04]))
    target = tmp_path / "page.html"
    target.write_text(html(build_report(load_results(tmp_path / "results"), Request())), encoding="utf-8")
    with browser(tmp_path / "profile") as opened:
        opened.open(target.as_uri())
        low, high, words = opened.value(GAIN)
    assert low == 0 and 0.044 < high < 0.1
    assert "1 seed, no interval" in words


WIDER = """(() => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  for (const figure of figures.values()) if (!figure.drawn) figure.draw();
  const room = document.documentElement.clientWidth, own = ".scroll, .pictures, .values, nav, .dot-label, [hidden]";
  const wide = [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > room + 1);
  const texts = wide.filter((one) => !one.closest(own)).map((one) => `${one.tagName} ${one.textContent.slice(0, 60)}`);
  return [document.documentElement.scrollWidth - room, texts]; })()"""


@needs_chromium
def test_nothing_is_wider_than_a_telephone_but_tables_and_grids_in_their_own_box(tmp_path):
    """With every part unfolded, a badge of several losses, and labels that are long words."""
    folder = tmp_path / "results"
    held_out = {"reward": "emoji-accuracy-of-the-other-scorer"}
    zero = spread([0, 0, 0])
    splits = ("train", "unseen")
    frames = [base_frame(zero, split=split, **kind) for split in splits for kind in ({}, held_out)]
    make_base(folder, *frames)
    for seed in range(3):
        loss = [partial(frame, spread([-1 - 0.01 * seed] * 3), split=split, **held_out) for split in splits]
        make_run(folder, "draft", seed, spread([1 + 0.01 * seed] * 3), frames=loss)
        for step_weight in ("official", "the_weight_of_a_step_with_a_very_long_name_that_has_no_space"):
            make_run(folder, "sdpo", seed, spread([0.5 + 0.01 * seed] * 3), **{"update.step_weight": step_weight})
    target = tmp_path / "page.html"
    target.write_text(html(build_report(load_results(folder), Request())), encoding="utf-8")
    with browser(tmp_path / "profile") as opened:
        opened.open(target.as_uri(), width=400)
        assert opened.value("document.querySelector('.answer .badge').textContent").count(" on ") == 2
        over, texts = opened.value(WIDER)
        assert not texts, texts
        assert over == 0


NAME = """(() => { const one = document.activeElement, label = one.ariaLabel ?? one.labels?.[0]?.firstChild.textContent;
  return [one.tagName, (label ?? one.textContent).trim(), one.closest("th")?.textContent.trim() ?? ""]; })()"""


@needs_chromium
def test_the_page_works_with_the_keyboard_alone(tab):
    """Tab reaches filters, slider and headings under a name; arrows and Enter work them."""
    seen, cut = [], 'getComputedStyle(document.querySelector("[data-pictures]")).getPropertyValue("--cut")'
    sort = 'document.activeElement.closest("th").ariaSort'
    methods = """[...document.activeElement.closest("table").tBodies[0].rows].map((one) => one.dataset.method)"""
    worked = set()
    for _ in range(400):
        tab.press("Tab")
        tag, name, heading = tab.value(NAME)
        seen.append(name)
        assert name, f"a control without a name after {seen}"
        if tag == "INPUT" and "slider" not in worked:
            tab.press("ArrowLeft")
            assert tab.value(cut) == "99%"
            worked.add("slider")
        if tag == "SELECT" and name == "Reward":
            tab.press("ArrowDown")  # the first value after "all"
            assert tab.value('document.getElementById("filtered").textContent') == "Shown: reward emoji-accuracy"
            assert tab.value(SHOWN) == [REWARD]
            tab.value('document.activeElement.value = ""; document.activeElement.dispatchEvent(new Event("change"))')
            worked.add("filter")
        if heading == "method" and tab.value(methods)[:2] == ["sdpo", "ddpo"]:
            for said, order in (("ascending", ["ddpo", "sdpo"]), ("descending", ["sdpo", "ddpo"])):
                tab.press("Enter")
                assert tab.value(sort) == said
                assert [one for one in tab.value(methods) if one != "base model"] == order
            worked.add("sorting")
        if len(worked) == 3:
            break
    assert worked == {"slider", "filter", "sorting"}, seen
    assert {"Method", "Reward", "Model", "Prompts"} <= set(seen)
    assert any(name.startswith("Share of each picture that shows the tuned model") for name in seen)
