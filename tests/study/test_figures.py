"""Figures: what they show, in which order, and what they refuse."""

import io
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from paperworks.study.contract import Experiment, Study, grid
from paperworks.study.errors import UserError
from paperworks.study.figures import COLOURS, bars, drawn, label, lines

RNG = np.random.default_rng(0)
METHODS = ["rtn", "adaround", "flexround"]
FRAME = pd.DataFrame(
    [
        {
            "experiment": "rounding", "seed": seed, "method": method, "bits": bits, "data": data,
            "logit_error": RNG.lognormal(), "loss": list(RNG.normal(size=20)), "seconds": 0.1,
        }
        for method in METHODS
        for bits in (8, 4, 2)
        for data in ("digits", "photos")
        for seed in range(5)
    ]
    + [
        {"experiment": "other", "seed": seed, "width": width, "slope": RNG.normal()}
        for width in ("inf", 16, 2)
        for seed in range(3)
    ]
)  # fmt: skip
DIGITS = FRAME[(FRAME["data"] == "digits")]


def ends(container):
    """Means and half intervals of an error-bar container."""
    line, _, (whiskers,) = container.lines
    low, high = np.array([segment[:, 1] for segment in whiskers.get_segments()]).T
    return line.get_ydata(), low, high


def trials(frame, method, bits, column="logit_error"):
    return frame[(frame["method"] == method) & (frame["bits"] == bits)][column].to_numpy()


def test_lines_show_the_mean_and_the_t_interval_of_each_cell():
    axes = lines(x="bits", y="logit_error", where={"data": "digits"}).draw(FRAME).axes[0]
    assert [container.get_label() for container in axes.containers] == METHODS
    mean, low, high = ends(axes.containers[1])
    for i, bits in enumerate((2, 4, 8)):
        values = trials(DIGITS, "adaround", bits)
        theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (mean[i], low[i], high[i]) == pytest.approx((values.mean(), theirs.low, theirs.high))


def test_a_logarithmic_axis_has_geometric_means():
    axes = lines(x="bits", y="logit_error", logy=True, logx=True).draw(DIGITS).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    mean, _, high = ends(axes.containers[0])
    logs = np.log(trials(DIGITS, "rtn", 2))
    theirs = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert (mean[0], high[0]) == pytest.approx((np.exp(logs.mean()), np.exp(theirs.high)))


def test_no_logarithm_of_what_is_not_positive():
    frame = FRAME.assign(logit_error=FRAME["logit_error"] - 10)
    axes = lines(x="bits", y="logit_error", logy=True).draw(frame).axes[0]
    assert axes.get_yscale() == "linear"


def test_other_cells_are_averaged_inside_each_seed_and_the_note_says_so():
    canvas = lines(x="bits", y="logit_error").draw(FRAME)
    values = trials(FRAME, "rtn", 4).reshape(2, 5).mean(0)
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert ends(canvas.axes[0].containers[0])[1][1] == pytest.approx(theirs.low)
    assert canvas.get_supxlabel().endswith("5 seeds, cells averaged inside each seed")
    canvas = lines(x="bits", y="logit_error").draw(DIGITS)
    assert canvas.get_supxlabel() == "mean and 95 % interval over 5 seeds"


def test_bars():
    axes = (
        bars(x="bits", y="logit_error", where={"bits": [4, 2], "data": "digits"})
        .draw(FRAME)
        .axes[0]
    )
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "4"]
    heights = [patch.get_height() for patch in axes.patches]
    means = [trials(DIGITS, method, bits).mean() for method in METHODS for bits in (2, 4)]
    assert heights == pytest.approx(means)


def test_levels_in_order_and_whole_numbers_as_such():
    axes = lines(x="width", y="slope", by=None).draw(FRAME).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "16", "inf"]
    axes = lines(x="method", y="logit_error", by="bits").draw(FRAME).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == METHODS
    assert [c.get_label() for c in axes.containers] == ["bits = 2", "bits = 4", "bits = 8"]


def test_curves_are_drawn_along_their_own_index():
    canvas = lines(x="step", y="loss", where={"bits": 4, "data": "digits"}).draw(FRAME)
    line = canvas.axes[0].lines[0]
    curves = np.array(trials(DIGITS, "rtn", 4, "loss").tolist())
    assert line.get_xdata().tolist() == list(range(1, 21))
    assert line.get_ydata() == pytest.approx(curves.mean(0))
    assert len(canvas.axes[0].collections) == len(METHODS)  # bands


def test_curves_along_another_curve():
    frame = DIGITS.assign(tokens=[[float(10 * i) for i in range(20)] for _ in range(len(DIGITS))])
    line = lines(x="tokens", y="loss").draw(frame).axes[0].lines[0]
    assert line.get_xdata().tolist() == [10.0 * i for i in range(20)]


def test_colour_is_not_the_only_difference():
    axes = lines(x="bits", y="logit_error").draw(FRAME).axes[0]
    made = [container.lines[0] for container in axes.containers]
    for look in (lambda line: to_hex(line.get_color()), lambda line: line.get_marker(),
                 lambda line: line.get_linestyle()):  # fmt: skip
        assert len(set(map(look, made))) == len(METHODS)
    assert to_hex(made[0].get_color()).upper() == COLOURS[0]
    patches = bars(x="bits", y="logit_error").draw(FRAME).axes[0].patches
    assert len({patch.get_hatch() for patch in patches}) == len(METHODS)


def test_many_methods_can_be_told_apart():
    frame = pd.concat([DIGITS.assign(method=f"m{i}") for i in range(20)])
    axes = lines(x="bits", y="logit_error").draw(frame).axes[0]
    looks = {
        (c.lines[0].get_color(), c.lines[0].get_marker(), str(c.lines[0].get_linestyle()))
        for c in axes.containers
    }
    assert len(looks) == 20
    bars(x="bits", y="logit_error").draw(frame)


def test_labels_title_and_legend():
    canvas = lines(x="bits", y="logit_error", title="How low?").draw(FRAME)
    axes, legend = canvas.axes[0], canvas.legends[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Bits", "Logit error")
    assert [text.get_text() for text in legend.get_texts()] == METHODS
    assert legend.get_title().get_text() == "How low?"
    assert label("fit_seconds") == "Fit (s)"
    assert label("seconds") == "Seconds"
    assert lines(x="n", y="y").draw(DIGITS.assign(n=1, y=1.0)).axes[0].get_xlabel() == "n"


def test_the_numbers_are_those_that_are_drawn():
    figure = lines(x="bits", y="logit_error", logy=True, where={"data": "digits"})
    numbers = figure.numbers(FRAME)
    assert list(numbers) == METHODS
    for container in figure.draw(FRAME).axes[0].containers:
        points = numbers[container.get_label()]
        for drawn_ones, column in zip(ends(container), ("mean", "low", "high")):
            assert drawn_ones == pytest.approx(points[column].to_numpy())
    assert figure.note(FRAME) == "geometric mean and 95 % interval over 5 seeds"
    assert lines(x="bits", y="logit_error", where={"bits": 3}).numbers(FRAME) == {}
    assert list(lines(x="width", y="slope", by=None).numbers(FRAME)) == [""]


def test_a_bar_that_is_undefined_says_so():
    frame = DIGITS[(DIGITS["method"] != "rtn") | (DIGITS["bits"] != 2)]
    axes = bars(x="bits", y="logit_error").draw(frame).axes[0]
    assert [text.get_text() for text in axes.texts] == ["n/a"]
    assert axes.texts[0].get_position()[0] == pytest.approx(-0.8 / 3)


def test_labels_of_ticks_do_not_run_into_each_other():
    depths = [3, 10, 30, 50, 100, 200, 5000, 50_000, 1_000_000]
    frame = pd.DataFrame(
        [{"depth": d, "seed": s, "y": d / (s + 1)} for d in depths for s in (0, 1)]
    )
    canvas = lines(x="depth", y="y", by=None, logx=True).draw(frame)
    canvas.draw_without_rendering()
    ticks = canvas.axes[0].get_xticklabels()
    said = [tick.get_text() for tick in ticks]
    assert said == ["3", "10", "30", "", "100", "", "5000", "50k", "1M"]
    boxes = [tick.get_window_extent() for tick in ticks if tick.get_text()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize(
    "names", [["a", "b"], [f"method {i}" for i in range(9)], ["long " * 8] * 1]
)
def test_everything_that_is_written_is_on_the_canvas(names):
    frame = pd.concat([DIGITS.assign(method=name) for name in names])
    canvas = bars(x="bits", y="logit_error", title="What?").draw(frame)
    canvas.draw_without_rendering()
    box = canvas.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= 700
    assert box.y1 <= canvas.bbox.y1
    assert canvas.axes[0].get_window_extent().height > 200


def test_png_is_readable_at_700_pixels():
    png = io.BytesIO()
    canvas = bars(x="bits", y="logit_error").draw(FRAME)
    canvas.savefig(png)
    assert canvas.get_size_inches()[0] * canvas.dpi == 700
    assert png.getvalue().startswith(b"\x89PNG")
    assert min(t.get_fontsize() for t in canvas.legends[0].get_texts()) >= 10


def test_one_seed_has_no_interval_and_no_rows_are_said():
    axes = lines(x="bits", y="logit_error").draw(DIGITS[DIGITS["seed"] == 0]).axes[0]
    mean, low, high = ends(axes.containers[0])
    assert low.tolist() == mean.tolist() == high.tolist()
    axes = lines(x="bits", y="logit_error", where={"bits": 3}).draw(FRAME).axes[0]
    assert axes.texts[0].get_text() == "not run at this scale"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"x": "bits", "y": "logit_eror"}, "'logit_eror': did you mean logit_error"),
        ({"x": "bit", "y": "logit_error"}, "did you mean bits"),
        ({"x": "bits", "y": "logit_error", "by": "zzz"}, "choose from bits, data, experiment"),
        ({"x": "bits", "y": "logit_error", "where": {"datas": 1}}, "did you mean data"),
    ],
)
def test_unknown_names_are_met_with_those_that_exist(how, message):
    for kind in (lines, bars):
        with pytest.raises(UserError, match=message):
            kind(**how).draw(FRAME)


def test_drawn_calls_the_function():
    def heat_map(frame):
        return Figure(figsize=(len(frame), 1))

    figure = drawn(heat_map)
    assert (figure.name, figure.experiment) == ("heat_map", None)
    assert figure.draw(FRAME).get_size_inches()[0] == len(FRAME)
    assert drawn(heat_map, name="map").name == "map"


def test_figures_in_a_study():
    def rounding(setting, run):
        return {}

    experiment = Experiment(rounding, {}, grid(a=1), grid(a=1), grid(a=1))
    other = lines(x="width", y="slope", by=None, experiment="other")
    mine = bars(x="bits", y="logit_error", experiment=experiment, name="mine")
    assert (other.name, mine.name, mine.experiment) == ("slope_by_width", "mine", "rounding")
    with pytest.raises(ValueError, match="figure"):
        Study("slug", [experiment], [], figures=[other, other])
    mine.draw(FRAME)


def test_importing_figures_imports_no_matplotlib():
    code = (
        "import sys, paperworks.study.figures as f; f.lines(x='a', y='b');"
        "print({'matplotlib', 'pandas', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys, pandas as pd; from paperworks.study.figures import lines\n"
        "frame = pd.DataFrame({'seed': [0, 1], 'a': [1, 1], 'b': [1.0, 2.0]})\n"
        "lines(x='a', y='b', by=None).draw(frame).savefig('/dev/null', format='png')\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
