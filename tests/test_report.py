"""Reports: from made-up runs to a page and figures."""

import json
import xml.etree.ElementTree as ET

import pytest

from secateur.core.errors import SecateurError
from secateur.core.events import Evaluated, Finished, Noticed, Started, Stepped
from secateur.report import (
    RunRecord,
    compare_losses,
    read_run,
    render,
    save_comparison,
    save_spread,
    write_page,
)
from secateur.report.figure import layer_flips, loss_figure, trust_figure
from secateur.report.style import to_svg

REPORT = {
    "format": "secateur-report-1",
    "density": {"asked": 0.1, "overall": 0.1, "layers": {"a.b": 0.1, "c": 0.1}},
    "evaluation": {
        "dense": {"loss": 0.4, "accuracy": 0.86},
        "start": {"loss": 1.4, "accuracy": 0.6},
        "pruned": {"loss": 0.65, "accuracy": 0.8},
        "samples": 1000,
        "disjoint": True,
    },
    "seconds": {"total": 5.0, "capture": 1.0, "select": 1.0, "solve": 0.5, "evaluate": 0.5},
    "flips": 1234,
    "steps": 3,
    "reason": "budget",
    "seed": 0,
    "method": "icbs",
    "weights": "mask only",
    "versions": {"secateur": "0.1.0", "torch": "2.13.0"},
    "notices": ["something <b>odd</b>"],
}


def step(number, *, measured=-0.1, guard=0.9, accepted=True):
    return Stepped(
        elapsed=float(number), step=number, predicted=-0.2, measured=measured, loss=1.0 - 0.1 * number,
        guard=guard, density=0.1, flips=10, blocks=1, samples=100, ridge=0.0, accepted=accepted,
        layers={"a.b": 6, "c": 4}, seconds={}, remaining=None,
    )  # fmt: skip


def events(*steps):
    return [
        Started(0.0, 0, {"a.b": (10, 20), "c": (5, 10)}, 0.1, 0, 60.0, None),
        Evaluated(0.1, "dense", {"loss": 0.4}, 1000, 0.1),
        *steps,
        Noticed(3.0, "something"),
        Finished(5.0, 3, "budget", 1234),
    ]


def record(*steps, report=REPORT, name="a run"):
    return RunRecord(name, report, [e.as_record() for e in events(*steps)], '[run]\nabout = "<x>"\n')


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "report.json").write_text(json.dumps(REPORT))
    lines = [json.dumps(e.as_record()) for e in events(step(1), step(2, accepted=False), step(3))]
    (path / "events.jsonl").write_text("\n".join(lines) + '\n{"event": "step')
    (path / "recipe.toml").write_text("[run]\ndensity = 0.1\n")
    return path


def test_a_page_holds_the_figures_and_needs_nothing_else(folder):
    page = write_page(folder).read_text()
    assert page == write_page(folder).read_text()  # twice the same
    for words in (
        "80.00 %",
        "0.6500",
        "1,234",
        "75 %",
        "Predicted and measured",
        "density = 0.1",
        "sparse runtime",
    ):
        assert words in page
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert "<link" not in page
    assert "src=" not in page
    assert page.count("prefers-color-scheme: dark") == 1


def test_what_was_not_measured_is_not_drawn():
    one_shot = render(record())
    assert one_shot.count("<svg") == 2
    assert "Predicted and measured" not in one_shot
    assert trust_figure(record(step(1, measured=None))) is None
    assert loss_figure(record(step(1, guard=None))) is not None


def test_text_is_escaped_and_a_cautious_word_said():
    report = {**REPORT, "evaluation": {**REPORT["evaluation"], "disjoint": False}}
    page = render(record(step(1), report=report, name="<i>run</i>"))
    assert "<b>odd</b>" not in page
    assert "<i>run</i>" not in page
    assert "these figures flatter" in page


def test_a_report_with_the_least_there_must_be():
    evaluation = {"pruned": {"loss": 1.0}}
    page = render(record(report={**REPORT, "evaluation": evaluation, "versions": {}, "notices": []}))
    assert "1.0000" in page
    assert "won back" not in page


def test_svg_is_well_formed_and_takes_the_colour_of_the_page():
    svg = to_svg(loss_figure(record(step(1), step(2))), "Loss")
    ET.fromstring(svg)
    assert "currentColor" in svg
    assert "#101112" not in svg
    assert 'aria-label="Loss"' in svg


def test_undone_steps_flip_nothing():
    assert layer_flips(record(step(1), step(2, accepted=False), step(3))) == {"a.b": 12, "c": 8}


def test_comparisons_and_spreads_are_drawn(tmp_path):
    runs = [record(step(1), step(2), name="one"), record(name="two")]
    assert len(compare_losses(runs).axes[0].lines) == 4
    for name in ("x/c.png", "c.svg"):
        assert save_comparison(runs, tmp_path / name).stat().st_size > 1000
    groups = {"loss": {"a": [1.0, 2.0], "b": [0.5, 0.4]}}
    assert save_spread(groups, tmp_path / "s.png", {"loss": 0.1}).stat().st_size > 1000


def test_reading_leaves_out_half_a_line(folder):
    run = read_run(folder)
    assert len(run.steps()) == 3
    assert run.name == "run"
    assert run.metrics("dense")["loss"] == 0.4


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: (f / "report.json").unlink(),
            "is not finished: go on with it by `secateur prune --resume",
        ),
        (lambda f: (f / "report.json").write_text("{"), "is damaged"),
        (lambda f: (f / "report.json").write_text("[]"), "is damaged: it holds no JSON object"),
        (lambda f: (f / "report.json").write_text("{}"), "is not a report of this version"),
        (lambda f: [p.unlink() for p in f.iterdir()], "is not a run folder: it holds neither"),
    ],
)
def test_folders_that_cannot_be_reported(folder, spoil, said):
    spoil(folder)
    with pytest.raises(SecateurError, match=said):
        read_run(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(SecateurError, match="there is no run folder"):
        read_run(tmp_path / "none")


def test_damaged_lines_of_the_log_are_left_out_and_counted(folder):
    log = folder / "events.jsonl"
    junk = [b"\xff\x00\x9b", b"[1]", b"3", b'{"event": "stepped"}', b'{"event": "started", "layers": 3}']
    log.write_bytes(b"\n".join(junk) + b"\n" + log.read_bytes())
    run = read_run(folder)
    assert run.skipped == 5
    assert len(run.steps()) == 3
    assert "5 damaged lines of events.jsonl are left out" in write_page(folder).read_text()
    log.write_bytes(bytes(range(256)) * 9)
    assert read_run(folder).steps() == []
    write_page(folder)


def test_a_legend_is_no_wider_than_its_figure():
    figure = loss_figure(record(step(1), step(2)))
    assert figure is not None
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
