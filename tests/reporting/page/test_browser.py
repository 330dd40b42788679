"""What a reader clicks: filters, the slider, lines, and links to runs, in a headless Chromium."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest
from report_factory import base_frame, make_base, make_run, spread

from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.html import html
from sdpo_bench.results.read_results import load_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=5000", "--dump-dom")
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


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
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
