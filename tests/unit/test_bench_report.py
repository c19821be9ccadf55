"""`bench report`: what it says about result files, a page that needs nothing else, what it makes of broken files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from unit import bench_samples as samples

from shardflow.bench.report.canvas import balanced
from shardflow.bench.report.charts import Bars, Ink, Lines, Picture
from shardflow.bench.report.compare import part
from shardflow.bench.report.drawing import ORIGIN, digest
from shardflow.bench.report.lines import spread
from shardflow.bench.report.make import gather
from shardflow.bench.report.words import exact, number, rough, span
from shardflow.cli.bench import bench


def _report(folder: Path, *arguments: str) -> Result:
    page = folder / "out" / "report.html"
    return CliRunner().invoke(bench, ["report", str(folder), "--out", str(page), *arguments])


def _pictures(folder: Path) -> dict[str, Picture]:
    sections, unread = gather([folder])
    assert not unread
    return {picture.name: picture for section in sections for picture in section.pictures}


def _bars(picture: Picture) -> dict[tuple[str, str], tuple[float | None, str]]:
    """(row, panel) → value and text."""
    chart = picture.chart
    assert isinstance(chart, Bars)
    return {
        (row.name, panel.title): (bar.value, bar.text)
        for panel in chart.panels
        for row, bar in zip(chart.rows, panel.bars, strict=True)
    }


class _Page(HTMLParser):
    """What a page refers to, its ids, its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data", "action") and value and not value.startswith("#"):
                self.outside.append(value)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """A folder with a result of each benchmark."""
    for name, data in samples.everything().items():
        samples.write(tmp_path, name, data)
    return tmp_path


def test_one_page_that_needs_nothing_else(everything: Path) -> None:
    answer = _report(everything, "--png", str(everything / "png"))
    assert answer.exit_code == 0, answer.output
    assert answer.stderr == ""
    text = (everything / "out" / "report.html").read_text()
    page = _Page(text)
    assert page.outside == []
    assert "@import" not in text
    assert "http:" not in text.replace("http://www.w3.org/", "")
    assert "https:" not in text
    assert len(page.ids) == len(set(page.ids))
    pictures = _pictures(everything)
    assert page.tags.count("svg") == page.tags.count("table") == len(pictures)
    for picture in pictures.values():
        assert picture.title in page.words
        assert picture.name in page.ids
    for name, data in samples.everything().items():
        assert f"{name}.json" in page.words
        assert data["command"] in page.words
    assert sorted(path.name for path in (everything / "png").iterdir()) == sorted(f"{name}.png" for name in pictures)
    for path in (everything / "png").iterdir():
        with Image.open(path) as image:
            assert image.width > 1_000
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert path.stat().st_size < 150_000


def test_pictures_are_drawn_in_the_colours_and_letters_of_the_page(everything: Path) -> None:
    assert _report(everything).exit_code == 0
    text = (everything / "out" / "report.html").read_text()
    known = {ink.value for ink in Ink}
    for part_of in text.split("<svg ")[1:]:
        svg = "<svg " + part_of.split("</svg>")[0] + "</svg>"
        svg = svg.replace("xlink:href", "href")
        for element in ElementTree.fromstring(svg).iter():
            look = element.get("style", "") + ";" + element.get("fill", "") + ";" + element.get("stroke", "")
            assert "DejaVu" not in look
            for word in look.replace(":", ";").split(";"):
                colour = word.strip()
                assert not colour.startswith("#") or colour == "#000000", look
                if colour.startswith("var(--"):
                    assert colour[6:-1] in {*known, "letters"}, look


def test_every_figure_of_a_throughput_picture_is_from_its_file(tmp_path: Path) -> None:
    for steps, rate, floor in ((3, 16_051, 21_300), (0, 50_100, 64_100), (1, 27_819, 41_800)):
        samples.write(tmp_path, f"t{steps}", samples.throughput(steps, rate, floor))
    (picture,) = _pictures(tmp_path).values()
    assert picture.title == "shardflow does 0.78, 0.67 and 0.75 of what a bare loop does, with 0, 1 and 3 steps"
    bars = _bars(picture)
    assert bars["shardflow", "no steps"] == (50_100, "50,100")
    assert bars["shardflow", "1 step"] == (27_819, "27,800")
    assert bars["bare loop", "3 steps"] == (21_300, "21,300")
    assert isinstance(picture.chart, Bars)
    bar = picture.chart.panels[1].bars[0]
    assert (bar.low, bar.high) == (26_919, 29_219)
    assert [row[:2] for row in picture.table.rows][1] == ["1", "27,800 (26,900 to 29,200)"]


def test_a_throughput_without_its_head_is_recognised(tmp_path: Path) -> None:
    data = samples.throughput(1)
    flat = {**data["figures"], "options": data["options"], "environment": data["environment"], "runs": data["runs"]}
    samples.write(tmp_path, "flat", flat)
    assert _bars(_pictures(tmp_path)["throughput"])["shardflow", "1 step"] == (28_000, "28,000")


def test_the_newest_of_two_results_of_one_situation_is_shown(tmp_path: Path) -> None:
    for name, rate, time in (("a", 20_000, "2026-05-05T00:00:00+00:00"), ("b", 10_000, "2026-01-01T00:00:00+00:00")):
        samples.write(tmp_path, name, {**samples.throughput(1, rate), "time": time})
    assert _bars(_pictures(tmp_path)["throughput"])["shardflow", "1 step"][0] == 20_000


def test_other_situations_have_pictures_of_their_own(tmp_path: Path) -> None:
    samples.write(tmp_path, "one", samples.throughput(1))
    other = samples.throughput(1, 60_000)
    other["options"]["workers"] = 4
    samples.write(tmp_path, "four", other)
    pictures = _pictures(tmp_path)
    assert {name: _bars(each)["shardflow", "1 step"][0] for name, each in pictures.items()} == {
        "throughput": 28_000,
        "throughput-2": 60_000,
    }
    assert "4 worker processes" in pictures["throughput-2"].note


def test_a_payload_and_retention_have_pictures_of_their_own_names(tmp_path: Path) -> None:
    for name, options in (("usual", {}), ("large", {"payload": 4096}), ("deleting", {"retention": 0.5})):
        data = samples.throughput(1)
        data["options"] |= options
        if "retention" in options:
            data["figures"] |= {"retention_workflows_per_s": 26_600, "ratio_with_retention": 0.95}
        samples.write(tmp_path, name, data)
    pictures = _pictures(tmp_path)
    assert list(pictures) == ["throughput", "throughput-4096-bytes", "throughput-retention"]
    assert _bars(pictures["throughput-retention"])["shardflow, deleting", "1 step"] == (26_600, "26,600")
    assert "0.95 of that without" in pictures["throughput-retention"].title


def test_a_picture_says_which_figures_it_shows(tmp_path: Path) -> None:
    samples.write(tmp_path, "it", samples.throughput(1))
    (picture,) = _pictures(tmp_path).values()
    assert _report(tmp_path, "--png", str(tmp_path / "png")).exit_code == 0
    with Image.open(tmp_path / "png" / "throughput.png") as image:
        assert image.info[ORIGIN] == digest(picture)
    samples.write(tmp_path, "it", samples.throughput(1, 28_001))
    (other,) = _pictures(tmp_path).values()
    assert digest(other) != digest(picture)


def test_latency_at_several_rates_is_a_curve_and_beside_a_backlog_bars(tmp_path: Path) -> None:
    for rate, p50, p99 in ((1_000, 7.8, 31), (100, 4.6, 17)):
        samples.write(tmp_path, f"l{rate}", samples.latency(rate, p50, p99))
    samples.write(tmp_path, "b", samples.latency(100, 18, 190, backlog=100_000))
    pictures = _pictures(tmp_path)
    curve = pictures["latency"].chart
    assert isinstance(curve, Lines)
    half, _, most = curve.panels[0].lines
    assert (half.xs, half.ys) == ([100, 1_000], [4.6, 7.8])
    assert (most.xs, most.ys) == ([100, 1_000], [17, 31])
    assert most.name == "99 % within 31 ms"
    assert not curve.panels[0].log
    assert pictures["latency"].title.startswith(
        "At 100 submits a second, half of the results are there within 4.6 ms"
    )
    assert "backlog of 100,000" in pictures["latency-backlog"].title
    assert _bars(pictures["latency-backlog"])["99 % within", "100/s, 1 step beside a backlog"] == (190, "190 ms")


def test_a_backlog_has_its_own_picture_whatever_else_there_is(tmp_path: Path) -> None:
    samples.write(tmp_path, "b", samples.latency(100, 18, 190, backlog=100_000))
    assert list(_pictures(tmp_path)) == ["latency-backlog"]
    samples.write(tmp_path, "l", samples.latency(100, 5, 20))
    assert list(_pictures(tmp_path)) == ["latency", "latency-backlog"]
    assert "within 5 ms" in _pictures(tmp_path)["latency"].title


def test_scale_out_says_how_near_to_linear(tmp_path: Path) -> None:
    samples.write(tmp_path, "it", samples.scaleout())
    pictures = _pictures(tmp_path)
    assert pictures["scaleout"].title == "8 shards do 7.5 times the work of one: 93 % of linear"
    chart = pictures["scaleout"].chart
    assert isinstance(chart, Lines)
    linear, ours = chart.panels[0].lines
    assert list(zip(linear.xs, linear.ys, strict=True)) == [(n, 2_000 * n) for n in (0, 1, 2, 4, 8)]
    assert ours.ys == [2_000, 3_950, 7_800, 14_900]
    assert ours.low is not None
    assert ours.low[0] == 1_940
    assert "4 % of a core" in pictures["scaleout"].note
    assert "steady rate" in pictures["scaleout-open"].title
    assert len(pictures) == 2  # clusters apart are only compared with
    steady = pictures["scaleout-open"].chart
    assert isinstance(steady, Lines)
    submitted, taken = steady.panels[0].lines
    assert (submitted.name, submitted.ys) == ("submitted", [1_010, 2_020, 4_040, 8_080])
    assert taken.name == "shardflow\n8,000 (99 %)"


def test_side_by_side_says_how_many_times_and_what_each_keeps(tmp_path: Path) -> None:
    samples.write(tmp_path, "it", samples.compare())
    pictures = _pictures(tmp_path)
    picture = pictures["compare"]
    assert (
        picture.title
        == "With 1 step shardflow runs 29 times as many workflows as Absurd and 93 times as many as DBOS"
    )
    bars = _bars(picture)
    assert bars["DBOS", "1 step"] == (300, "300 (1/93)")
    assert bars["shardflow", "1 step"] == (27_800, "27,800")
    assert bars["PgQueuer", "1 step"] == (None, "has no steps")
    assert isinstance(picture.chart, Bars)
    keeps = {row.name: row.note for row in picture.chart.rows}
    assert keeps["PgQueuer"] == "2 processes; keeps a line of its log for each job"
    assert keeps["DBOS"] == "2 or 3 processes; keeps every workflow and step"
    assert keeps["shardflow"] == "1 process; keeps every workflow and step"
    assert [row.name for row in picture.chart.rows][:2] == ["shardflow", "bare loop"]
    assert picture.chart.log
    again = pictures["compare-bars"].chart
    assert isinstance(again, Bars)
    assert not again.log
    assert _bars(pictures["compare-bars"]) == bars


def test_a_sweep_says_which_settings_were_best(tmp_path: Path) -> None:
    samples.write(tmp_path, "it", samples.sweep())
    picture = _pictures(tmp_path)["sweep"]
    assert picture.title.startswith("Each rival was tried with up to 3 settings")
    bars = _bars(picture)
    assert bars["DBOS", "no steps"] == (1_120, "1,120 of 3")
    assert bars["awa", "1 step"] == (None, "not tried")
    assert [row[:3] for row in picture.table.rows[:2]] == [["DBOS", "0", "1,120"], ["DBOS", "0", "750"]]
    assert [row[-1] for row in picture.table.rows[:3]] == ["processes: 2", "as they are before", "threads: 8"]


def test_a_run_that_failed_beside_others_is_said(tmp_path: Path) -> None:
    data = samples.compare()
    data["figures"] = [each for each in data["figures"] if (each["system"], each["steps"]) != ("dbos", 3)]
    data["runs"].append({"run": 2, "system": "dbos", "steps": 3, "error": "it hangs"})
    data["figures"][0]["verified"] = False
    samples.write(tmp_path, "it", data)
    ((section,), _) = gather([tmp_path])
    assert _bars(section.pictures[0])["DBOS", "3 steps"] == (None, "not measured")
    assert section.warnings == ["it.json: DBOS, 3 steps: it hangs", "it.json: DBOS, no steps: not verified"]


def test_a_soak_says_how_its_end_compares_with_its_beginning(tmp_path: Path) -> None:
    samples.write(tmp_path, "it", samples.soak())
    picture = _pictures(tmp_path)["soak"]
    assert picture.title == (
        "After 60 minutes of mixed work throughput is at 98 % of what it was, size on disk at 102 %"
    )
    assert isinstance(picture.chart, Lines)
    assert [panel.axis for panel in picture.chart.panels] == [
        "workflows/s",
        "ms from submit to result, of a probe",
        "size on disk, MB",
        "dead rows, thousands",
        "a worker's resident memory, MB",
    ]
    rate = picture.chart.panels[0].lines[0]
    assert len(rate.xs) <= 240
    assert (rate.ys[0], rate.xs[-1]) == (14_000, 60)
    assert max(picture.chart.panels[2].lines[0].ys) == 300
    assert len(picture.table.rows) == 10
    assert picture.table.rows[-1][1:] == ["13,700", "20", "90", "300 MB", "90 MB", "50,000", "83"]


def test_a_horizon_shades_the_time_of_the_open_transaction(tmp_path: Path) -> None:
    samples.write(tmp_path, "it", samples.horizon())
    picture = _pictures(tmp_path)["horizon"]
    assert picture.title == "With a transaction held open for 10 minutes throughput is 87 % of that without"
    assert isinstance(picture.chart, Lines)
    (stretch,) = picture.chart.spans
    assert (stretch.start, stretch.end) == (10, pytest.approx(20.17, abs=0.01))
    assert [row[1] for row in picture.table.rows] == ["", "", "", *["held open"] * 4, "", "", ""]


def test_an_endurance_run_that_did_not_pass_says_so(tmp_path: Path) -> None:
    data = samples.soak()
    data["figures"] |= {"passed": False, "failed": 2}
    samples.write(tmp_path, "it", data)
    ((section,), _) = gather([tmp_path])
    assert section.warnings == ["it.json: 2 failed", "it.json: its own verdict is that it failed"]


def test_a_million_names_what_takes_longer(tmp_path: Path) -> None:
    data = samples.million()
    samples.write(tmp_path, "it", data)
    picture = _pictures(tmp_path)["million"]
    assert picture.title == (
        "Among 1,000,000 workflows of each kind 18 of 19 operations take at most 1.5 times as long as among 10,000"
    )
    assert isinstance(picture.chart, Bars)
    assert [row.name for row in picture.chart.rows[:4]] == ["list all", "claim 500", "submit", "memory of the worker"]
    assert [panel.title for panel in picture.chart.panels] == ["never analysed", "analysed"]
    assert [bar.ink for bar in picture.chart.panels[0].bars[:3]] == [Ink.SECOND, Ink.OURS, Ink.OURS]
    assert len(picture.chart.rows) == 14
    assert len(picture.table.rows) == 20
    assert picture.table.rows[-1][:4] == ["count", "9 ms", "900 ms", "100"]
    samples.write(tmp_path, "it", json.loads(json.dumps(data).replace("7.5", "1.2")))
    assert _pictures(tmp_path)["million"].title == (
        "Among 1,000,000 workflows of each kind nothing takes more than 1.45 times as long as among 10,000"
    )


def test_a_million_of_which_some_are_misplaced_is_no_good_million(tmp_path: Path) -> None:
    data = samples.million()
    data["figures"]["shards"][0]["misplaced"] = 4
    samples.write(tmp_path, "it", data)
    ((section,), _) = gather([tmp_path])
    assert section.warnings == ["it.json: 4 workflows are not in exactly one place"]


def test_sleepers_say_what_they_cost_a_worker(tmp_path: Path) -> None:
    samples.write(tmp_path, "it", samples.sleepers())
    picture = _pictures(tmp_path)["sleepers"]
    assert (
        picture.title == "With 100,000 workflows suspended a worker takes 83.2 MB; with a hundredth of them 80.1 MB"
    )


def test_what_went_wrong_in_a_run_is_said(tmp_path: Path) -> None:
    data = samples.throughput(1)
    data["figures"] |= {"lost": 3, "verified": False}
    samples.write(tmp_path, "it", data)
    answer = _report(tmp_path)
    assert answer.exit_code == 0
    assert "it.json: 3 lost" in _Page((tmp_path / "out" / "report.html").read_text()).words


def test_a_good_run_has_no_warning(everything: Path) -> None:
    sections, _ = gather([everything])
    assert [section.warnings for section in sections if section.warnings] == []


BROKEN = {
    "cut": '{"benchmark": "throughput", "figures": {',
    "list": [1, 2],
    "unknown": {"benchmark": "nonsense"},
    "anonymous": {"figures": {"x": 1}},
    "empty": {"benchmark": "throughput", "figures": {}},
    "words": {"benchmark": "scaleout", "series": {"drained": [{"shards": "two", "workflows_per_s": 1}]}},
    "binary": "\x00\x01",
}


def test_broken_files_are_named_and_stop_nothing(tmp_path: Path) -> None:
    samples.write(tmp_path, "good", samples.throughput(1))
    for name, data in BROKEN.items():
        samples.write(tmp_path, name, data)
    answer = _report(tmp_path)
    assert answer.exit_code == 0, answer.output
    words = _Page((tmp_path / "out" / "report.html").read_text()).words
    for name in BROKEN:
        assert f"{name}.json" in answer.stderr
        assert f"{name}.json" in words
    assert "27," not in answer.stderr
    assert "28,000" in words


def test_nothing_to_show_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    for name, data in BROKEN.items():
        samples.write(tmp_path, name, data)
    answer = _report(tmp_path)
    assert answer.exit_code == 1
    assert "is not known here" in str(answer.exception)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_drawn_is_named_and_stops_nothing(tmp_path: Path) -> None:
    samples.write(tmp_path, "a", samples.latency(100))
    samples.write(tmp_path, "b", samples.latency(200, 1e308, 1.7e308))
    answer = _report(tmp_path, "--json")
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert told["shown"] == [str(tmp_path / "a.json")]
    assert list(told["not_shown"]) == [str(tmp_path / "b.json")]


def _places(value: Any) -> Iterator[list[Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield [key]
        for rest in _places(each):
            yield [key, *rest]


def _spoilt(data: dict[str, Any], place: list[Any], junk: Any) -> dict[str, Any]:
    made = copy.deepcopy(data)
    at: Any = made
    for key in place[:-1]:
        at = at[key]
    if junk is ...:
        del at[place[-1]]
    else:
        at[place[-1]] = junk
    return made


@pytest.mark.parametrize("name", samples.everything())
def test_no_spoilt_value_stops_the_report(tmp_path: Path, name: str) -> None:
    data = samples.short(samples.everything()[name])
    places = list(_places(data))
    assert len(places) > 5
    for place in places:
        for junk in (..., None, "x", -1, 0, 1e308, [], {}, [[]], True):
            path = samples.write(tmp_path, "it", _spoilt(data, place, junk))
            sections, unread = gather([path])
            assert bool(sections) != bool(unread), (place, junk)


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>&\"'$\\frac$"
    data = samples.compare()
    data["command"] = hostile
    data["environment"] = {**data["environment"], "cpu_model": hostile}
    data["systems"][hostile] = {**data["systems"]["dbos"], "keeps": hostile}
    data["figures"].append({**data["figures"][0], "system": hostile})
    samples.write(tmp_path, "it", data)
    answer = _report(tmp_path, "--png", str(tmp_path / "png"))
    assert answer.exit_code == 0, answer.output
    page = _Page((tmp_path / "out" / "report.html").read_text())
    assert "script" not in page.tags
    assert hostile in page.words


def test_without_matplotlib_the_error_says_what_to_install(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    answer = _report(everything)
    assert answer.exit_code == 1
    assert "pip install 'shardflow[report]'" in str(answer.exception)


def test_the_command_line_loads_without_matplotlib() -> None:
    code = "import sys, shardflow.cli.bench; assert not {'matplotlib', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lines_that_end_near_each_other_have_names_apart() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread([0.0, 0.02, 0.04, 0.5], 0.1) == pytest.approx([-0.08, 0.02, 0.12, 0.5])


def test_a_title_breaks_into_lines_of_like_length() -> None:
    assert balanced("one two three four five six", 20) == ["one two three", "four five six"]
    assert balanced("short", 20) == ["short"]
    assert balanced("", 20) == []
    assert balanced("x" * 50, 20) == ["x" * 20, "x" * 20, "x" * 10]


@pytest.mark.parametrize(
    ("value", "text"), [(27_819, "27,800"), (4.567, "4.57"), (0, "0"), (0.0012345, "0.00123"), (99.96, "100")]
)
def test_three_digits_are_enough(value: float, text: str) -> None:
    assert rough(value) == text


def test_what_is_no_number_is_no_figure() -> None:
    figures = {"a": True, "b": "1", "c": float("nan"), "d": float("inf"), "e": None, "f": 3}
    assert [number(figures, key) for key in ("a", "b", "c", "d", "e", "f", "g")] == [None] * 5 + [3.0, None]
    assert number(figures, "a", "c", "f") == 3.0


def test_numbers_in_words() -> None:
    assert [exact(value) for value in (1_000, 2.5, 0.126, None)] == ["1,000", "2.5", "0.13", "–"]
    assert [span(minutes) for minutes in (0.5, 5, 60, 150)] == ["30 seconds", "5 minutes", "60 minutes", "2.5 hours"]
    assert [part(300, 27_800), part(10, 25), part(30, 25)] == ["1/93", "1/2.5", "1.2×"]
