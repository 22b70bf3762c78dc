"""The views of the notebooks: what they draw is the law, a moved control shows, and wrong input
is told in one line.
"""

from __future__ import annotations

import base64
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.colors import to_hex
from matplotlib.text import Text
from traitlets.config import Config

from figures import style
from figures.theory.sweeps import corner
from figures.views import player as interactive_runs
from figures.views import view as interactive
from figures.views.chains import chains_view
from figures.views.ladder import exponents, ladder_figure, rung
from figures.views.law import corners_view, law_view, pace_view, sequences
from figures.views.player import Recording, player, record, small, transitions
from figures.views.sliders import SLIDERS, RoundSlider, lengths, slider, steps
from figures.views.training import Cancelled, Training
from figures.views.view import (
    SHOWN,
    WIDTH,
    View,
    friendly,
    mixed,
    one_line,
    quick,
    read_lengths,
    still,
)
from markov.cases import LENGTH, MEMORISATION
from markov.errors import InvalidInput
from markov.experiments import Experiment, Pretraining
from markov.models import Tabular
from markov.objectives import CORNERS, npo, simnpo
from markov.recording import log_laws
from markov.running.models import load_model, model_jobs, model_path, models_folder
from markov.running.run import run
from markov.sweeps import LENGTHS

FEW = {"retain_count": 60, "forget1_count": 40, "forget2_count": 40}
TINY = Experiment(
    case=replace(LENGTH, **FEW),
    model=Tabular(),
    pretraining=Pretraining(epochs=2, batch=8, learning_rate=0.3, optimizer="sgd"),
    steps=4,
    recorded=(0, 1, 2, 4),
    learning_rate=0.3,
    test_examples=6,
)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def weight_by_hand(
    beta: float,
    gamma: float,
    reference: float,
    normalize: float,
    length: float,
    start: float,
    fall: float,
) -> float:
    z = beta * (length * (start - fall) - reference * length * start) / length**normalize + gamma
    return 2 * sigmoid(z) / length**normalize


# --- controls and pictures ---

VIEWS: dict[str, Callable[[], View]] = {
    "law": law_view,
    "corners": lambda: corners_view(fall=0.3),
    "pace": pace_view,
    "chains": chains_view,
}
MOVES = [
    *(
        ("law", name, value)
        for name, value in (("beta", 1.0), ("gamma", 1.0), ("reference", 0.5), ("normalize", 0.5))
    ),
    *(("law", name, value) for name, value in (("length", 40), ("fall", 1.0))),
    *(
        ("corners", name, value)
        for name, value in (("lengths", "3, 50"), ("summed", 1.0), ("per_token", 3.0))
    ),
    *(("corners", name, value) for name, value in (("start", -0.2), ("fall", 1.0))),
    *(
        ("pace", name, value)
        for name, value in (("beta", 1.0), ("reference", 0.0), ("normalize", 0.5), ("fall", 1.0))
    ),
    *(
        ("chains", name, value)
        for name, value in (("component", "retain"), ("leakage", 0.6), ("draw", 7))
    ),
]


@cache
def made(name: str) -> View:
    """One view for all moves: each leaves it as it was, or fails."""
    return VIEWS[name]()


@pytest.mark.parametrize(("name", "control", "value"), MOVES)
def test_a_moved_control_changes_the_picture_and_moving_it_back_restores_it(
    name: str, control: str, value: Any
):
    view = made(name)
    before, moved = view.image.value, view.controls[control]
    first, moved.value = moved.value, value
    assert view.image.value != before
    moved.value = first
    assert view.image.value == before
    assert view.message.value == ""


def test_without_a_reference_the_start_and_the_margin_matter_to_time_too():
    view = pace_view(reference=0.0)
    for name, value in (("start", -3.0), ("gamma", 1.5)):
        before, view.controls[name].value = view.image.value, value
        assert view.image.value != before


@pytest.mark.parametrize("make", [law_view, pace_view])
def test_a_moved_picture_is_the_one_drawn_afresh(make: Callable[..., View]):
    moved = make()
    moved.controls["beta"].value, moved.controls["normalize"].value = 1.0, 0.4
    assert moved.image.value == make(beta=moved.controls["beta"].value, normalize=0.4).image.value


def test_every_control_of_a_view_is_shown_and_named():
    view = law_view()
    grid, message, frame = view.children
    assert list(grid.children) == list(view.controls.values())
    assert (message, frame.children) == (view.message, (view.image,))
    assert set(view.values) == {
        "beta",
        "gamma",
        "reference",
        "normalize",
        "length",
        "start",
        "fall",
    }


def test_shared_controls_move_both_views():
    first = law_view(beta=0.1)
    second = pace_view(controls=first.controls)
    assert second.values["beta"] == pytest.approx(0.1)
    before = first.image.value, second.image.value
    first.controls["beta"].value = 1.0
    assert second.values["beta"] == 1.0
    assert first.image.value != before[0] and second.image.value != before[1]


def test_a_view_prints_as_the_picture_that_it_shows():
    view = law_view()
    data, metadata = view._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == view.image.value
    assert bytes(view.image.value).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert 500 < metadata["image/png"]["width"] < 1300


def test_a_figure_becomes_a_picture():
    figure, ((axes,),) = style.grid_figure(1, 1, 2, 1)
    empty = still(figure).data
    axes.plot([0, 1], [0, 1])
    assert empty.startswith(b"\x89PNG") and still(figure).data != empty


@pytest.mark.parametrize("name", sorted(SLIDERS))
def test_a_slider_keeps_its_value_and_refuses_one_beyond_its_limits(name: str):
    low, *_, high = SLIDERS[name].stops
    middle = math.sqrt(low * high) if name == "beta" else round((low + high) / 2)
    assert slider(name, middle).value == middle
    for value in (low, high):
        assert slider(name, value).value == value
    with pytest.raises(InvalidInput, match=f"^{name} = "):
        slider(name, high + 1)
    with pytest.raises(InvalidInput, match=f"^{name} = "):
        slider(name, low - 1)


def test_beta_is_on_a_logarithmic_scale_and_a_slider_has_a_known_name():
    stops = np.array(SLIDERS["beta"].stops)
    assert stops[[0, -1]].tolist() == [0.001, 30.0] and {0.05, 0.2, 2.5, 4.0} <= set(stops)
    assert (stops[1:] / stops[:-1]).max() <= 1.5
    with pytest.raises(InvalidInput, match="slider"):
        slider("delta", 1.0)


@pytest.mark.parametrize("name", sorted(SLIDERS))
def test_a_key_moves_a_slider_by_a_fiftieth_of_its_way_at_least_and_to_round_numbers(name: str):
    control = slider(name, SLIDERS[name].stops[3])
    # A key moves a slider of this kind to the next of its options, and they lie equally far apart.
    assert [value for _, value in control.slider.options] == list(control.stops)
    assert 1 / (len(control.stops) - 1) >= 1 / 50
    assert all(len(f"{abs(one):g}".replace(".", "").strip("0")) <= 2 for one in control.stops)
    reached = []
    for place in range(len(control.stops)):
        control.slider.index = place
        reached.append(control.value)
    assert reached == list(control.stops)


@pytest.mark.parametrize("name", sorted(SLIDERS))
def test_one_pressed_key_shows_in_the_law(name: str):
    view = law_view(reference=0.5)  # with the whole reference the start does not matter
    before, control = pixels(view), view.controls[name]
    control.slider.index += 1 if control.slider.index + 1 < len(control.stops) else -1
    assert (pixels(view) != before).any(-1).sum() > 100


def pixels(view: View) -> np.ndarray:
    return np.asarray(view.canvas.buffer_rgba()).copy()


def test_a_number_between_the_stops_is_kept_as_it_is_and_a_key_goes_on_from_there():
    control = slider("beta", 4.5)
    heard: list[float] = []
    control.observe(lambda change: heard.append(change["new"]), "value")
    control.value = 0.37
    assert (control.value, control.box.value, control.slider.value) == (0.37, 0.37, 0.4)
    control.box.value = 4.4
    assert (control.value, control.slider.value) == (4.4, 4.0)
    control.slider.index += 1
    assert (control.value, control.box.value) == (5.0, 5.0)
    assert heard == [0.37, 4.4, 5.0]
    for beyond, limit in ((99, 30.0), (-1, 0.001)):
        control.value = beyond
        assert (control.value, control.box.value, control.slider.value) == (limit,) * 3
    length = slider("length", 19)
    length.value = 21
    assert isinstance(length.value, int) and length.value == length.box.value == 21


def test_stops_are_round_and_begin_and_end_where_they_are_told_to():
    assert steps(0.01, 0.3, 0.1) == (0.01, 0.1, 0.2, 0.3)
    assert lengths(3, 27) == (3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 27)


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_a_view_has_room_in_a_narrow_window_and_its_text_is_inside_and_readable(name: str):
    view = made(name)
    figure, canvas = view.picture.figure, view.canvas
    assert SHOWN * figure.get_figwidth() <= SHOWN * WIDTH <= 640
    renderer = canvas.get_renderer()
    for one in figure.findobj(Text):
        assert isinstance(one, Text)
        box = Text.get_window_extent(one, renderer)
        seen = one.get_visible() and one.get_text().strip()
        if seen and all(axes.axison for axes in [one.axes] if axes):
            assert box.x1 <= figure.bbox.width + 1 and box.y1 <= figure.bbox.height + 1, one
            assert box.x0 >= -1 and box.y0 >= -1 and float(one.get_fontsize()) >= 7, one


# --- wrong input ---


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_lengths_are_read_back_sorted_and_once_each(lengths: list[int]):
    assert read_lengths(" , ".join(map(str, lengths))).tolist() == sorted(set(lengths))


@pytest.mark.parametrize("text", ["", "4, 0", "4; 5", "-3", "1001", "four", "4,,5", "1.5", "٤²"])
def test_what_is_no_length_is_refused(text: str):
    with pytest.raises(
        InvalidInput, match=r"^lengths = .* is not allowed: whole numbers from 1 to 1000"
    ):
        read_lengths(text)


def test_what_cannot_be_drawn_is_named_in_the_view_and_the_picture_stays():
    view = corners_view()
    before, view.controls["lengths"].value = view.image.value, "4, none"
    assert "cannot be used" in view.message.value and "lengths" in view.message.value
    assert "\n" not in view.message.value and view.image.value == before
    view.controls["lengths"].value = "5, 50"
    assert view.message.value == "" and view.image.value != before


@pytest.mark.parametrize("make", [law_view, corners_view, pace_view])
def test_all_ends_of_all_sliders_can_be_drawn(make: Callable[..., View]):
    view = make()
    sliders = {
        name: control for name, control in view.controls.items() if isinstance(control, RoundSlider)
    }
    ends = [(control.stops[0], control.stops[-1]) for control in sliders.values()]
    for values in itertools.product(*ends):
        for control, value in zip(sliders.values(), values, strict=True):
            control.value = value
        assert view.message.value == "", dict(zip(sliders, values, strict=True))


def test_an_error_is_one_line_of_harmless_html():
    line = one_line(InvalidInput("field", "<b>&", "something else"))
    assert "&lt;b&gt;&amp;" in line and "\n" not in line


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    InteractiveShell.clear_instance()
    one = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    yield one
    InteractiveShell.clear_instance()


def test_friendly_answers_wrong_input_by_one_line_and_leaves_other_errors_alone(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    shown: list[Any] = []
    monkeypatch.setattr(interactive, "display", shown.append)
    shell.run_cell("from figures.views.view import friendly\nfriendly()")
    refused = shell.run_cell("from markov.objectives import npo\nnpo(-1.0)")
    assert not refused.success and isinstance(refused.error_in_exec, InvalidInput)
    assert [one.data.count("beta = -1.0 is not allowed") for one in shown] == [1]
    assert "Traceback" not in "".join(capsys.readouterr())
    assert not shell.run_cell("raise KeyboardInterrupt").success
    assert "stopped" in shown.pop().data and "Traceback" not in "".join(capsys.readouterr())
    assert not shell.run_cell("1 / 0").success
    assert "Traceback" in "".join(capsys.readouterr()) and len(shown) == 1


def test_friendly_does_nothing_outside_a_notebook():
    InteractiveShell.clear_instance()
    assert friendly() is None  # pyright: ignore[reportGeneralTypeIssues]


def test_quick_is_asked_for_by_a_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(interactive.QUICK, raising=False)
    assert not quick()
    for value, wanted in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(interactive.QUICK, value)
        assert quick() == wanted
    monkeypatch.setenv(interactive.QUICK, "yes")
    with pytest.raises(InvalidInput, match="SIMNPO_LAB_QUICK"):
        quick()


# --- what is drawn is the law ---

POINTS: list[dict[str, Any]] = [
    {
        "beta": 0.2,
        "gamma": 0.0,
        "reference": 1.0,
        "normalize": 0.0,
        "length": 19,
        "start": -1.0,
        "fall": 0.5,
    },
    {
        "beta": 4.0,
        "gamma": -0.5,
        "reference": 0.0,
        "normalize": 1.0,
        "length": 4,
        "start": -0.3,
        "fall": 0.0,
    },
    {
        "beta": 0.7,
        "gamma": 1.5,
        "reference": 0.25,
        "normalize": 0.6,
        "length": 150,
        "start": -2.0,
        "fall": 1.3,
    },
    {
        "beta": 0.01,
        "gamma": 0.0,
        "reference": 0.5,
        "normalize": 0.3,
        "length": 1,
        "start": -4.0,
        "fall": 3.0,
    },
]


@pytest.mark.parametrize("numbers", POINTS)
def test_the_law_view_draws_the_weight(numbers: dict[str, Any]):
    view = law_view(**numbers)
    values = view.values  # sliders round to their step
    square, _, by_length, by_fall = view.picture.figure.axes
    expected = weight_by_hand(**values)
    for axes, at in ((by_length, values["length"]), (by_fall, values["fall"])):
        (point,) = [line for line in axes.lines if line.get_marker() == "o"]
        assert (point.get_xdata(), point.get_ydata()) == (
            pytest.approx([at]),
            pytest.approx([expected], rel=1e-9),
        )
    first, now = by_length.lines[:2]
    for line, fall in ((first, 0.0), (now, values["fall"])):
        lengths, weights = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        by_hand = [
            weight_by_hand(**{**values, "length": length, "fall": fall}) for length in lengths
        ]
        np.testing.assert_allclose(weights, by_hand, rtol=1e-9)
    falls = np.asarray(by_fall.lines[1].get_xdata())
    by_hand = [weight_by_hand(**{**values, "fall": fall}) for fall in falls]
    np.testing.assert_allclose(np.asarray(by_fall.lines[1].get_ydata()), by_hand, rtol=1e-9)
    assert f"{expected:.3g}" in view.picture.figure.texts[0].get_text()
    assert any(
        np.allclose(line.get_xydata(), [[values["reference"], values["normalize"]]])
        and line.get_markersize() > 10
        for line in square.lines
    )


@pytest.mark.parametrize("name", sorted(CORNERS))
def test_at_a_corner_the_line_has_the_colour_of_its_method(name: str):
    reference, normalize = CORNERS[name]
    view = law_view(reference=reference, normalize=normalize)
    assert to_hex(view.picture.figure.axes[2].lines[1].get_color()).upper() == style.COLORS[name]


def test_a_mixed_colour_lies_between():
    assert (
        mixed("#000000", "#ffffff", 0.0) == "#000000"
        and mixed("#000000", "#ffffff", 1.0) == "#ffffff"
    )
    assert mixed("#000000", "#ff8000", 0.5) in ("#804000", "#7f4000")


def test_sequences_are_what_they_say():
    seq = sequences([4, 20], -1.5, [0.5, 1.0])
    assert (
        seq.length.tolist() == [4, 20]
        and seq.ref.tolist() == [-6, -30]
        and seq.logp.tolist() == [-8, -50]
    )
    assert seq.logp.dtype == torch.float64


@pytest.mark.parametrize("fall", [0.0, 0.4, 2.0])
def test_in_the_corners_twenty_tokens_have_fallen_as_far_as_asked_and_the_weight_follows(
    fall: float,
):
    view = corners_view(lengths="5, 20, 80", summed=0.1, per_token=2.0, start=-0.8, fall=fall)
    axes = view.picture.figure.axes
    for upper, lower, (name, (reference, normalize)) in zip(
        axes[:4], axes[4:], CORNERS.items(), strict=True
    ):
        lengths, fallen = (np.asarray(part) for part in upper.lines[0].get_data())
        assert lengths.tolist() == [5, 20, 80]
        assert fallen[1] == pytest.approx(fall, abs=1e-6)
        beta = view.values["per_token" if normalize else "summed"]
        by_hand = [
            weight_by_hand(beta, 0.0, reference, normalize, length, -0.8, own)
            for length, own in zip(lengths, fallen, strict=True)
        ]
        np.testing.assert_allclose(np.asarray(lower.lines[0].get_ydata()), by_hand, rtol=1e-9)
        assert upper.lines[0].get_color() == style.COLORS[name]
        if fall and normalize:
            np.testing.assert_allclose(fallen, fall, rtol=1e-6)


def euler(beta: float, length: int, until: float) -> float:
    """What NPO's response has lost per token at a time, in small steps."""
    fallen, steps = 0.0, 20_000
    for _ in range(steps):
        fallen += until / steps * length * weight_by_hand(beta, 0.0, 1.0, 0.0, length, -1.0, fallen)
    return fallen


def test_the_pace_view_solves_the_equation_of_motion():
    view = pace_view(beta=0.1, fall=0.5)
    falling, needed = view.picture.figure.axes
    beta, fall = view.values["beta"], view.values["fall"]
    span, drawn = (np.asarray(part) for part in falling.lines[1].get_data())
    unit = brute_force_time(beta, 20, fall)
    place = int(np.abs(span - 3.0).argmin())
    assert drawn[place] == pytest.approx(euler(beta, 20, unit * span[place]), rel=2e-3)
    lengths, times = (np.asarray(part) for part in needed.lines[0].get_data())
    place = int(np.abs(lengths - 60).argmin())
    assert times[place] == pytest.approx(
        brute_force_time(beta, lengths[place], fall) / unit, rel=2e-3
    )


def brute_force_time(beta: float, length: float, fall: float) -> float:
    falls = (np.arange(20_000) + 0.5) * fall / 20_000
    return sum(
        fall / 20_000 / (length * weight_by_hand(beta, 0.0, 1.0, 0.0, length, -1.0, own))
        for own in falls
    )


def exponent(view: View) -> float:
    return float(view.picture.figure.texts[0].get_text().split("^")[1])


def test_the_exponent_is_minus_one_for_a_small_beta_and_zero_per_token_and_where_it_turns():
    assert exponent(pace_view(beta=0.001, fall=0.1)) == pytest.approx(-1, abs=0.011)
    assert abs(exponent(pace_view(beta=1.0, normalize=1.0))) <= 0.005
    assert abs(exponent(pace_view(beta=0.2, fall=0.5))) <= 0.011
    assert exponent(pace_view(beta=0.5, fall=0.5)) > 0.5


# --- chains ---


def test_the_view_of_a_chain_shows_its_matrix_its_sequences_and_the_bayes_law():
    view = chains_view(component="forget2", leakage=0.3, draw=5)
    left, middle, _, right = view.picture.figure.axes[:4]
    case = replace(LENGTH, leakage=0.3)
    chain = case.chains().forget2
    np.testing.assert_array_equal(left.images[0].get_array(), chain.transition)
    drawn = np.ma.asarray(middle.images[0].get_array()).filled(np.nan)
    tokens = drawn[:, :5].astype(int)
    assert np.isnan(drawn[:, 5:]).all() and tokens.min() >= 0 and tokens.max() < 10
    prior, belief = np.array(case.mixture().weights), []
    for time_ in range(4):
        probability = [own.initial[tokens[0, 0]].item() for own in case.chains()]
        for index, own in enumerate(case.chains()):
            for before, after in zip(tokens[0, :time_], tokens[0, 1 : time_ + 1], strict=True):
                probability[index] *= own.transition[before, after].item()
        joint = prior * np.array(probability)
        belief.append(joint / joint.sum())
    shown = np.stack([np.asarray(line.get_ydata()) for line in right.lines], axis=1)
    np.testing.assert_allclose(shown, belief, rtol=1e-9)


# --- recordings ---


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return [record(replace(TINY, objective=one)) for one in (npo(0.2), simnpo(4.0))]


def test_a_recording_is_the_run_and_its_table_that_of_run(recordings: list[Recording]):
    whole = run([one.experiment for one in recordings], progress=False)
    for index, one in enumerate(recordings):
        expected = whole[whole["run"] == index].reset_index(drop=True)
        pd.testing.assert_frame_equal(one.table, expected.assign(run=0), rtol=1e-5)
        assert one.steps == [0, 1, 2, 4] and one.laws.shape == (4, 10, 10)
    assert [one.label for one in recordings] == ["NPO, β = 0.2", "SimNPO, β = 4"]


def test_the_matrix_of_a_table_is_its_softmax(recordings: list[Recording]):
    job = model_jobs(TINY)[0]
    law = load_model(models_folder(), job)["table"].softmax(-1).double().numpy()
    visited = ~np.isnan(recordings[0].laws[0]).any(1)
    assert visited.sum() >= 9
    np.testing.assert_allclose(recordings[0].laws[0][visited], law[visited], rtol=1e-5)
    assert not np.allclose(recordings[0].laws[-1][visited], law[visited], rtol=1e-3)


def test_transitions_are_means_over_the_contexts_of_each_state():
    experiment = small()
    model = replace(experiment.model, width=8, mlp_width=8, depth=1)
    own = {name: value[None] for name, value in model.init(0).items()}
    probes = [tokens[:5] for tokens in experiment.case.sample(0).test.values()]
    found = transitions(model, own, probes)
    for state in range(10):
        laws = [
            log_laws(model, own, tokens).exp()[row, place].double().numpy()
            for tokens in probes
            for row in range(len(tokens))
            for place in range(tokens.shape[1] - 1)
            if tokens[row, place] == state
        ]
        np.testing.assert_allclose(found[state], np.mean(laws, axis=0), rtol=1e-5)


def test_before_knows_all_chains_and_the_goal_the_retain_chain_only(recordings: list[Recording]):
    one, chains = recordings[0], TINY.case.chains()
    np.testing.assert_allclose(one.goal, chains[0].transition, atol=1e-12)
    assert one.before[4, 3:6].sum() > 0.5 > one.goal[4, 3:6].sum()
    np.testing.assert_allclose(one.before.sum(1), 1)


def test_only_a_case_can_be_recorded():
    with pytest.raises(InvalidInput, match="case"):
        record(Experiment(case=LENGTHS, model=Tabular(states=LENGTHS.states)))


def test_the_small_run_has_fewer_records_where_quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(interactive.QUICK, "0")
    whole = small("memorisation")
    monkeypatch.setenv(interactive.QUICK, "1")
    few = small("memorisation")
    assert isinstance(whole.case, type(MEMORISATION)) and whole.case.name == "memorisation"
    assert whole.recorded and few.recorded and set(few.recorded) < set(whole.recorded)
    assert whole.steps == few.steps == max(few.recorded) == interactive_runs.STEPS
    with pytest.raises(InvalidInput, match="case"):
        small("both")


def test_the_player_shows_the_row_of_the_table(recordings: list[Recording]):
    view = player(recordings)
    axes = view.picture.figure.axes
    for index, one in enumerate(recordings):
        for moment, step in enumerate(one.steps):
            view.controls["run"].value, view.controls["moment"].value = index, moment
            now = one.table[one.table["step"] == step].set_index("component")
            np.testing.assert_array_equal(
                axes[0].images[0].get_array(), np.ma.masked_invalid(one.laws[moment])
            )
            heights = [
                bar.get_path().get_extents(bar.get_patch_transform()).height
                for bar in axes[3].patches
            ]
            assert heights == pytest.approx(
                [now.at[name, "weight_share"] for name in ("forget1", "forget2")]
            )
            points = [line for line in axes[4].lines if line.get_zorder() == 7]
            for point, name in zip(points, ("forget1", "forget2"), strict=True):
                place = [now.at["retain", "kl_to_truth"], now.at[name, "kl_to_truth"]]
                np.testing.assert_allclose(
                    np.asarray(point.get_xydata()).ravel(), np.array(place, dtype=float)
                )
            assert f"{one.label}:  step {step} of 4" in view.picture.figure.texts[0].get_text()
    np.testing.assert_array_equal(axes[1].images[0].get_array(), recordings[0].before)
    np.testing.assert_array_equal(axes[2].images[0].get_array(), recordings[0].goal)


def test_the_player_names_what_it_draws(recordings: list[Recording]):
    view = player([*recordings, replace(recordings[0])])
    figure = view.picture.figure
    plane = figure.axes[4]
    (legend,) = [one for part in figure.subfigs for one in part.legends]
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [
        *("NPO, β = 0.2", "SimNPO, β = 4", "NPO, β = 0.2"),
        *("long (|y| = 19)", "short (|y| = 4)", "retrained model"),
    ]
    colors = [to_hex(line.get_color()).upper() for line in legend.get_lines()[:3]]
    assert colors[:2] == [style.COLORS["npo"], style.COLORS["simnpo"]] and len(set(colors)) == 3
    named = {text.get_text(): text for text in plane.texts}
    assert set(named) == {"goal, long", "goal, short", "long", "short"}
    # Only the p-value of TOFU's test is called forget quality.
    assert (plane.get_xlabel(), plane.get_ylabel()) == (
        "retain distance, nats",
        "forget distance, nats",
    )
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["retain", "long", "short"]
    for moment in range(4):
        view.controls["moment"].value = moment
        points = [line for line in plane.lines if line.get_zorder() == 7]
        for point, name in zip(points, ("long", "short"), strict=True):
            label: Any = named[name]
            np.testing.assert_allclose(label.xy, np.asarray(point.get_xydata())[0])


@pytest.mark.parametrize("moment", range(4))
def test_no_text_of_the_player_lies_on_another_or_is_cut(recordings: list[Recording], moment: int):
    view = player(recordings, moment=moment)
    figure, canvas = view.picture.figure, view.canvas
    drawn = [one for one in figure.findobj(Text) if isinstance(one, Text) and one.get_visible()]
    # Numbers at ticks lie where matplotlib puts them, some out of sight.
    ticks = [
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
    ]
    names = figure.axes[0].get_yticklabels() + figure.axes[3].get_xticklabels()
    texts = [one for one in drawn if one.get_text().strip() and (one in names or one not in ticks)]
    boxes = [Text.get_window_extent(one, canvas.get_renderer()) for one in texts]
    whole = [(text.get_text(), box) for text, box in zip(texts, boxes, strict=True)]
    for text, box in whole:
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text
    for (text, box), (other, beside) in itertools.combinations(whole, 2):
        assert not box.overlaps(beside), (text, other)
    assert min(float(one.get_fontsize()) for one in texts) >= 8


def test_the_chosen_run_is_drawn_thicker_than_the_others(recordings: list[Recording]):
    view = player(recordings)
    for index, one in enumerate(recordings):
        view.controls["run"].value = index
        thick = [line for line in view.picture.figure.axes[4].lines if line.get_linewidth() == 2]
        color = style.COLORS[str(one.table["method"].iloc[0])]
        assert [to_hex(line.get_color()).upper() for line in thick] == [color] * 2


def test_the_play_button_moves_the_slider_over_all_moments(recordings: list[Recording]):
    view = player(recordings, moment=2)
    play, moment = view.play, view.controls["moment"]
    assert (play.min, play.max, play.value, play.step) == (0, 3, 2, 1)
    assert (view.linked.source, view.linked.target) == ((play, "value"), (moment, "value"))
    grid = view.children[0]
    assert any(
        list(one.children) == [play, moment] for one in grid.children if hasattr(one, "children")
    )
    assert "click on the slider" in grid.children[-1].value


def test_scrubbing_changes_the_picture_and_coming_back_restores_it(recordings: list[Recording]):
    view = player(recordings, moment=1)
    before = view.image.value
    seen = {before}
    for moment in (0, 2, 3):
        view.controls["moment"].value = moment
        seen.add(view.image.value)
    view.controls["run"].value = 1
    assert len(seen | {view.image.value}) == 5
    view.controls["run"].value, view.controls["moment"].value = 0, 1
    assert view.image.value == before


def test_the_player_takes_runs_of_one_kind_at_a_moment_that_they_have(recordings: list[Recording]):
    other = replace(recordings[0], experiment=replace(TINY, case=replace(TINY.case, leakage=0.3)))
    for wrong, kwargs in (
        ([], {}),
        ([recordings[0], other], {}),
        (recordings, {"moment": 4}),
        (recordings, {"moment": -1}),
    ):
        with pytest.raises(InvalidInput, match=r"recordings|moment"):
            player(wrong, **kwargs)


# --- training live ---


def test_a_training_that_nobody_started_gives_the_recording_all_the_same(
    recordings: list[Recording],
):
    training = Training(recordings[0].experiment)
    before = training.view.image.value
    found = training.result()
    pd.testing.assert_frame_equal(found.table, recordings[0].table)
    assert training.result() is found and training.view.image.value != before
    assert (training.message.value, training.bar.value, training.bar.max) == ("done", 4, 4)
    assert training.cancel.disabled and not training.start.disabled


def test_a_started_training_pretrains_what_is_missing_as_run_would(recordings: list[Recording]):
    experiment = replace(TINY, pretraining=replace(TINY.pretraining, seed=5))
    job = model_jobs(experiment)[0]
    path = model_path(models_folder(), job)
    assert not path.exists()
    training = Training(experiment)
    training.start.click()
    found = training.result()
    assert found.steps == [0, 1, 2, 4] and path.exists()
    kept = load_model(models_folder(), job)
    path.unlink()
    again = load_model(models_folder(), job)
    assert kept.keys() == again.keys() and all(
        torch.equal(kept[name], again[name]) for name in kept
    )


def test_a_cancelled_training_stops_keeps_nothing_half_done_and_can_begin_again():
    experiment = replace(TINY, pretraining=replace(TINY.pretraining, seed=6, epochs=60))
    path = model_path(models_folder(), model_jobs(experiment)[0])
    training = Training(experiment)
    training.start.click()
    until = time.monotonic() + 30
    while not training.message.value.startswith("pretraining") and time.monotonic() < until:
        time.sleep(0.005)
    training.cancel.click()
    with pytest.raises(Cancelled):
        training.result()
    assert training.message.value.startswith("stopped") and not path.exists()
    assert training.recording is None and not training.start.disabled


def test_a_training_shows_its_picture_on_a_page_without_a_kernel():
    training = Training(TINY)
    data, _ = training._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == training.view.image.value


# --- the ladder ---


def test_exponents_are_those_of_exact_power_laws():
    lengths = np.array([2, 5, 10, 20])
    rungs = [
        rung("a", "npo", lengths, 3.0 * lengths**-0.7),
        rung("a", "simnpo", lengths, 2.0 * lengths**0.3),
    ]
    rungs.append(rung("b", "npo", [*lengths, 40], [*(lengths / 2), np.inf]))
    found = exponents(rungs).to_dict("index")
    assert [found["a"]["npo"], found["a"]["simnpo"]] == pytest.approx([-0.7, 0.3])
    assert found["b"]["npo"] == pytest.approx(1.0) and math.isnan(found["b"]["simnpo"])


def test_the_ladder_draws_every_rung_relative_to_its_mean():
    lengths = np.array([2.0, 4.0, 8.0])
    rungs = [
        rung(name, "npo", lengths, scale / lengths)
        for name, scale in (("a", 1.0), ("b", 50.0), ("c", 9.0))
    ]
    (axes,) = ladder_figure(rungs).axes
    assert len(axes.lines) == 3
    for line in axes.lines:
        np.testing.assert_allclose(np.asarray(line.get_ydata()), [2.0, 1.0, 0.5])
    assert [line.get_label() for line in axes.lines] == [f"{name}: p = -1.00" for name in "abc"]


def test_a_rung_needs_a_known_method_and_a_time_for_each_length():
    for method, times in (("no", [1.0, 2.0]), ("npo", [1.0])):
        with pytest.raises(InvalidInput, match=r"method|times"):
            rung("a", method, [1, 2], times)
    with pytest.raises(InvalidInput, match="rungs"):
        ladder_figure([])


def test_the_corner_that_the_notebooks_compare_is_the_one_that_is_run():
    assert corner("npo", 0.05) == npo(0.05) and corner("simnpo", 1.0) == simnpo(1.0)
