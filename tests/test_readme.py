"""What the README, the guide for contributors and the chapter of findings say is true: the tour
runs, commands, figures, files and links exist, and numbers that are quickly recomputed are so.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from figures.cache import Context
from figures.catalogue import BY_NAME, FIGURES
from figures.chains import attribution, claims
from figures.chains.learning_rate import FRACTIONS
from figures.language import sources
from figures.scale import EVIDENCE, SEARCHED, Scale
from figures.statistics import interval_text, lookup
from figures.theory.optimizer import FACTOR
from figures.theory.sweeps import BETAS, FALL, corner, start, sweep_case
from llm.__main__ import parse
from llm.commands.diagnose import Diagnose
from llm.commands.relearn import Relearn
from llm.commands.score import Score
from llm.commands.unlearn import Unlearn
from llm.commands.weights import Weights
from llm.diagnostics.allocation import bias, spearman
from llm.diagnostics.weights import diagnose
from llm.jobs.evaluating import read_tofu_logs
from llm.logs.measures import measures, model_utility
from llm.logs.summaries import TOLERANCE
from llm.models.small import fresh_model
from llm.models.small_authors import DefaultModels, sets
from llm.unlearning.methods import objective
from markov.__main__ import Grid, experiment, points
from markov.experiments import Experiment
from markov.objectives import CORNERS, Objective
from markov.theory import time_to_forget

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "notebooks/findings.md", "notebooks/README.md")
}
README, CONTRIBUTING, FINDINGS = list(PAGES.values())[:3]
TOLD = README + FINDINGS
LINKS = [
    pytest.param(name, target, id=f"{name} to {target}")
    for name, text in PAGES.items()
    for target in sorted(set(re.findall(r"\]\(([^)#\s]+)\)", text)))
    if "://" not in target
]
# A number in prose, with a hyphen or a typographic minus.
NUMBER = r"[-−]?\d+(?:\.\d+)?(?:e-?\d+)?"
REAL = os.environ.get(sources.VARIABLE)


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def numbers(text: str) -> list[float]:
    return [number(found) for found in re.findall(rf"(?<![\w.]){NUMBER}", text)]


def told(pattern: str, text: str = FINDINGS) -> list[float]:
    """The numbers in the groups of a pattern that occurs once; each space in it matches a line's
    end, and each # a number.
    """
    wanted = pattern.replace(" ", r"\s+").replace("#", f"({NUMBER})")
    (found,) = re.finditer(wanted, text)
    return [number(group) for group in found.groups()]


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its own first two lines."""
    below = text.split(f"# {heading}\n")[1]
    (table, *_) = re.findall(r"(?:^\|.*\n)+", below, re.MULTILINE)
    return [[cell.strip() for cell in line[1:-1].split(" |")] for line in table.splitlines()[2:]]


# --- the README runs ---


def test_the_tour_runs_and_shows_what_the_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    (tour,) = re.findall(r"^```python\n(.*?)```", README, flags=re.DOTALL | re.MULTILINE)
    lines = [
        line for line in tour.splitlines() if line and not line.startswith(("from ", "import "))
    ]
    assert len(lines) <= 10
    names: dict[str, pd.DataFrame] = {}
    exec(compile(tour, "README.md", "exec"), names)
    table = names["table"]
    first = table.query("step == 0 and method == 'npo'")
    assert (first["weight"] == 1).all() and (first["weight_std"] == 0).all()
    assert not table.duplicated(["run", "step", "component"]).any()
    assert "retain_distance" in capsys.readouterr().out


def test_the_readme_and_the_guide_fit_on_screens() -> None:
    assert len(README.splitlines()) <= 164
    assert len(CONTRIBUTING.splitlines()) <= 65


# --- files, commands, figures ---


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_every_link_and_picture_leads_somewhere(page: str, target: str) -> None:
    assert (ROOT / page).parent.joinpath(target).exists()


def test_the_readme_shows_three_pictures_and_leads_to_the_book_and_the_guide() -> None:
    pictures = re.findall(r"!\[.*?\]\(figures/gallery/(.*?)\.png\)", README)
    assert pictures == ["tradeoff", "llm_beside", "study/llm_study"]
    targets = {link.values[1] for link in LINKS if link.values[0] == "README.md"}
    book = {f"notebooks/{name}.md" for name in ("index", "findings", "glossary")}
    assert book | {"CONTRIBUTING.md"} <= targets


def test_every_file_and_name_of_the_guide_exists() -> None:
    files = set(re.findall(r"`([\w./]+/[\w.]*)`", CONTRIBUTING))
    assert len(files) > 25
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []
    named = re.findall(r"`([A-Z_]+)` (?:of|in)\s+`([\w/]+\.py)`", CONTRIBUTING)
    assert len(named) >= 7
    for name, file in named:
        assert re.search(rf"^{name}\b", (ROOT / file).read_text("utf-8"), re.MULTILINE), name


def test_every_make_target_exists() -> None:
    text = "".join(PAGES.values())
    targets = set(re.findall(r"(?:`|^)make ([a-z]+(?:-[a-z]+)*)", text, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert {"figures", "figures-all", "test", "book", "lab", "claims"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_the_guide_names_every_step_of_the_acceptance_script() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    lines = re.findall(r"^make (?:-j 2 )?([a-z -]+)$", script, re.MULTILINE)
    steps = " ".join(lines).split()
    assert len(steps) >= 5
    assert [step for step in steps if f"`make {step}`" not in CONTRIBUTING] == []


def test_the_shell_commands_parse() -> None:
    import tyro

    from markov.__main__ import Unlearn as UnlearnChains

    kinds = {"unlearn": UnlearnChains, "grid": Grid}
    commands = re.findall(r"^ *python -m markov (\w+) (.*)$", TOLD, flags=re.MULTILINE)
    assert {name for name, _ in commands} == set(kinds)
    for name, rest in commands:
        command = tyro.cli(kinds[name], args=shlex.split(rest))
        single = points(command) if isinstance(command, Grid) else [command]
        assert all(isinstance(experiment(point), Experiment) for point in single)


def test_the_commands_of_the_language_models_parse() -> None:
    commands = re.findall(r"^ *python -m llm (\w+.*)$", TOLD, flags=re.MULTILINE)
    commands += re.findall(r"`python -m llm (\w+[^`]*)`", TOLD)
    asked = [parse(shlex.split(command)) for command in commands]
    assert {Score, Weights, Unlearn, Diagnose} <= {type(one) for one in asked}
    words = [word for one in asked for word in getattr(one, "objectives", ())]
    words += [one.objective for one in asked if isinstance(one, Unlearn)]
    assert all(isinstance(objective(word), Objective) for word in words)


def test_every_figure_that_is_named_exists() -> None:
    drawn = re.findall(r"make figures ARGS=\"([^\"]*)\"`", TOLD)
    names = {
        word
        for arguments in drawn
        for word in shlex.split(arguments)
        if re.fullmatch(r"[a-z_]+[a-z_0-9]*", word)
    }
    assert {"tradeoff", "llm_bias", "memorisation"} <= names
    names |= set(re.findall(r"[Ff]igure\s+`(\w+)`", FINDINGS))
    assert names <= set(BY_NAME)


def test_every_picture_of_the_findings_is_of_a_figure_that_is_named_below_it() -> None:
    pictures = re.findall(r"!\[[^]]*\]\((\S*)/(\w+)\.png\)\n\n\*Figure `(\w+)`", FINDINGS)
    assert len(pictures) == FINDINGS.count("![") >= 5
    for folder, picture, name in pictures:
        assert picture == name
        assert BY_NAME[name].study if folder.endswith("/study") else BY_NAME[name].gallery


# --- numbers ---


def test_the_readme_has_no_number_of_results_that_the_findings_lack() -> None:
    cells = " ".join(cell for row in rows(README, AGREES) for cell in row)
    assert len(numbers(cells)) > 10
    assert sorted(set(numbers(cells)) - set(numbers(FINDINGS))) == []


AGREES = "What agrees with the paper, and what does not"


def test_the_table_of_claims_is_that_of_the_frame() -> None:
    assert claims.markdown(CLAIMS) in FINDINGS
    found = {str(name): own for name, own in CLAIMS.groupby("claim")}
    assert set(CLAIMS["models"]) == {EVIDENCE} == {*CLAIMS["count"]}
    assert told("which is # to # nats more") == ends(found["A1"]["nats"], 3)
    assert told("SimNPO pays # to # times as much") == ends(found["A2"]["value"], 2)
    assert told("nearer to each other than NPO's, by # to #") == ends(found["A3"]["nats"], 3)
    between = CLAIMS.loc[CLAIMS["architecture"] == "paper", "between"]
    assert told("lie between models are # to #") == ends(between, 2)
    # what is said of A3 in nats
    nats = {
        str(name): own["nats_low"]
        for name, own in CLAIMS.query("claim == 'A3'").groupby("architecture")
    }
    assert (nats["paper"] > 0.01).all() and (nats["released"] < 0.001).all()
    halves = found["B2"]["value"].to_numpy() / found["B1"]["value"].to_numpy()
    assert "narrows that gap by about half" in FINDINGS and (abs(halves - 0.5) < 0.1).all()


CLAIMS = pd.read_csv(ROOT / "figures" / "gallery" / "claims" / "claims.csv")


def ends(values: Any, digits: int) -> list[float]:
    """The least and the largest of some values, as they are told."""
    return [round(float(one), digits) for one in (min(values), max(values))]


GALLERY = ROOT / "figures" / "gallery"


def test_what_is_done_to_npo_is_told_as_the_frame_has_it() -> None:
    frame = pd.read_csv(GALLERY / "attribution" / "effects.csv")
    found = lookup(frame, ["case", "component", "effect"])
    assert set(frame["count"]) == {EVIDENCE}
    short, long, known = ("length", "forget2"), ("length", "forget1"), ("memorisation", "forget1")
    dropped, normalised, both = attribution.EFFECTS
    for pattern, key in (
        (r"reference multiplies NPO's price by # \(# to #\)", (*short, dropped)),
        (r"dividing by the length by # \(# to #\)", (*short, normalised)),
        (r"together multiply it by # \(# to #\)", (*short, both)),
        (r"the interaction is # \(# to #\)", (*short, "interaction")),
        (r"makes it dearer, # \(# to #\)", (*long, normalised)),
        (r"together make it cheaper, # \(# to #\)", (*long, both)),
        (r"forgetting what was memorised by # \(# to #\)", (*known, dropped)),
        (r"the scale of beta: # \(# to #\)", (*known, normalised)),
    ):
        assert told(pattern) == numbers(interval_text(found[key])), key
    assert told("their product, #") == [round(found[*short, "product"].value, 2)]
    assert found[*short, dropped].high < 1 and found[*short, "interaction"].high < 1
    nats = frame.set_index(["case", "component", "effect"])["nats"].to_dict()
    each = [-nats[*short, name] for name in (dropped, normalised, both)]
    assert told("takes away # and #, and both take #, which is all") == [
        round(one, 3) for one in each
    ]
    prices = pd.read_csv(GALLERY / "betas" / "prices.csv").query("case == 'length'")
    (paid,) = told("Counted above the start NPO pays # nats")
    assert each[2] > paid  # SimNPO ends below the start
    free, alike = (
        prices.query(f"method == '{method}' and beta == {beta}")
        .set_index("component")
        .to_dict("index")
        for method, beta in (("reference_free_npo", 1.0), ("simnpo", 4.0))
    )
    said = told("at β = # all runs reach its goal at # nats, near SimNPO's #")
    assert said == [1.0, *(round(one["forget2"]["value"], 3) for one in (free, alike))]
    assert free["forget1"]["reached"] == 0
    assert free["forget2"]["reached"] == free["forget2"]["runs"] == EVIDENCE
    betas = pd.read_csv(GALLERY / "attribution" / "betas.csv")
    for method, beta in zip(betas["method"], betas["beta"], strict=True):
        assert SEARCHED[method][0] < beta < SEARCHED[method][-1]  # no optimum at an edge


def test_what_the_step_size_does_is_told_as_the_frame_has_it() -> None:
    frame = pd.read_csv(GALLERY / "learning_rate" / "factors.csv")
    own = {str(name): part for name, part in frame.groupby("component")}
    short, long = own["forget2"], own["forget1"]
    assert told("twice it NPO pays # to # times SimNPO's") == ends(short["value"], 1)
    below = re.findall(rf"no interval reaches below ({NUMBER})", " ".join(FINDINGS.split()))
    for part, said, digits in zip((short, long), below, (1, 2), strict=True):
        assert number(said) == math.floor(part["low"].min() * 10**digits) / 10**digits
    assert told("long chain it pays # to # times") == ends(long["value"], 1)
    assert FRACTIONS[0] == 1 / 16 and FRACTIONS[-1] == 2 and set(frame["count"]) == {EVIDENCE}


def test_the_law_is_told_as_it_is_coded() -> None:
    table = {row[0]: row[1:] for row in rows(FINDINGS, "The law")}
    names = {"NPO": "npo", "length-normalised NPO": "length_normalized_npo"}
    names |= {"reference-free NPO": "reference_free_npo", "SimNPO": "simnpo"}
    for reference in (0, 1):
        for normalize, cell in enumerate(table[f"`reference = {reference}`"]):
            name = names[cell.split(" (")[0].strip("* ")]
            assert CORNERS[name] == (reference, normalize)
    assert told("(?<!Sim)NPO has `reference = #, normalize = #`", README) == [*CORNERS["npo"]]
    assert told("SimNPO has `reference = #, normalize = #`", README) == [*CORNERS["simnpo"]]


def test_the_runs_that_are_counted_are_those_that_are_made() -> None:
    words = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight"}
    scale = Scale()
    runs, models = EVIDENCE * scale.orders, words[EVIDENCE]
    for text in (README, FINDINGS):
        assert re.search(rf"{runs}\s+runs\s+over\s+{models}\s+pretrained\s+models", text)
    assert f"`make figures` draws {words[scale.pretrained]} models" in " ".join(FINDINGS.split())
    assert f'`make figures ARGS="claims --architectures --seeds {EVIDENCE}"`' in FINDINGS
    assert f"intervals over {words[scale.sweep_pretrained]} pretrained models" in FINDINGS
    case = sweep_case(Context(scale=scale))
    assert f"{words[len(case.lengths) - 1]} lengths at once" in FINDINGS
    attack = {field: Relearn.__dataclass_fields__[field].default for field in ("repeats", "share")}
    assert f"{words[attack['repeats']]} attacks" in FINDINGS
    assert attack["share"] == 1 / 5 and "A fifth of the forget set" in FINDINGS
    assert told("that keep #% of the original's utility") == [100 * (1 - TOLERANCE)]


def test_the_figures_are_expected_to_take_what_the_readme_says() -> None:
    (minutes,) = told("The figures take about # minutes on two cores, and half", README)
    assert minutes == round(sum(BY_NAME[name].seconds for name in FIGURES) / 60)


def test_the_exponents_of_the_scalar_law_are_as_told() -> None:
    case = sweep_case(Context(scale=Scale()))
    lengths = np.array([length - 1 for length in case.lengths.values()][1:])

    def exponent(method: str) -> float:
        law = corner(method, BETAS[method][1])
        times = time_to_forget(law, lengths, FALL, start(case))
        return float(np.polyfit(np.log(lengths), np.log(times), 1)[0])

    beta, slope = told(r"Under NPO \(β = #\) the scalar law says that time goes as \|y\|\^#")
    assert beta == BETAS["npo"][1] and slope == round(exponent("npo"), 2)
    (slope,) = told("Under SimNPO the scalar law says #")
    assert slope == pytest.approx(exponent("simnpo"), abs=1e-9)
    assert told("of a response down by # nats") == [FALL]


def test_the_exponent_of_npo_leaves_minus_one_and_turns_positive_where_it_is_told() -> None:
    first, far, turn = (
        *told("A weight of 1 would give the exponent #"),
        *told(r"only while β\|y\| times the fall is far below #; at # its exponent turns positive"),
    )

    def slope(moved: float) -> float:
        """The exponent at |y| = 100, with beta |y| fall = moved."""
        law, around = corner("npo", moved / (100 * FALL)), np.array([99.99, 100.01])
        return float(
            np.diff(np.log(time_to_forget(law, around, FALL)))[0] / np.log(around[1] / around[0])
        )

    assert far == turn
    assert slope(1e-4) == pytest.approx(first, abs=1e-3)
    assert slope(turn / 4) > first + 0.05
    assert slope(turn) == pytest.approx(0, abs=1e-6)
    assert slope(0.99 * turn) < 0 < slope(1.01 * turn)


def test_a_factor_on_all_weights_is_that_of_the_pair_that_is_compared() -> None:
    top, bottom, update = told("A factor of #/# makes the first update # times as large under SGD")
    assert (top, bottom) == (1, FACTOR) and update == top / bottom


def test_the_default_model_is_as_large_as_told() -> None:
    settings = DefaultModels()
    forget, retain = (len(part) for part in sets(settings))
    assert told("has read # fictional authors") == [settings.authors.authors]
    assert told("knows # answers by heart") == [forget + retain]
    assert 5 * forget == forget + retain
    assert "the fifth that is to be forgotten" in " ".join(FINDINGS.split())
    assert told("statistic D behind it too: # answers beside #") == [forget, forget]
    size = sum(one.numel() for one in fresh_model(settings).parameters())
    assert told("with # million parameters") == [round(size / 1e6, 1)]


@pytest.mark.skipif(
    REAL is None, reason=f"{sources.VARIABLE} names no folder with Llama-2-7B's logs"
)
def test_what_is_told_of_llama_2_7b_is_what_its_logs_say() -> None:
    # Told of the retain90 of the paper's repository; a clone of TOFU's has another one.
    folder = Path(str(REAL)) / "logs"
    names = ("full", "retain90", "retain90_locuslab")
    if not all((folder / f"llama2-7b_{name}").is_dir() for name in names):
        pytest.skip("the logs of all three models are not there")
    full, retrained, other = (read_tofu_logs(folder / f"llama2-7b_{name}") for name in names)
    geometric, arithmetic = rows(FINDINGS, "Llama-2-7B, from its logs alone")
    found = measures(full, retrained.of("forget")).set_index("measure")
    utility = [float(found[column]["model_utility"]) for column in ("value", "low", "high")]
    assert numbers(geometric[1]) == [round(value, 3) for value in utility]
    assert numbers(geometric[2]) == [round(model_utility(retrained), 3)]
    p, statistic = found["value"][["forget_quality", "ks_statistic"]]
    count = len(full.of("forget").index)
    assert numbers(geometric[3]) == [float(f"{p:.0e}"), round(statistic, 2), count, count]
    over: Any = measures(full, per_author=20).set_index("measure").loc["model_utility"]
    assert told("the utility has an interval of # to #") == [
        round(float(over[end]), 3) for end in ("low", "high")
    ]
    widths = []
    for each in (20, None):
        table = measures(retrained, per_author=each).set_index(["measure", "task"])
        row: Any = table.loc[("probability", "forget")]
        widths.append(row["high"] - row["low"])
    authors = len({*(retrained.of("forget").index // 20)})
    said = told("is # times as wide over # authors as over their # questions")
    assert said == [round(widths[0] / widths[1], 2), authors, count]
    for logs, cell in ((full, arithmetic[1]), (retrained, arithmetic[2])):
        assert numbers(cell) == [round(model_utility(logs, "arithmetic"), 3)]

    p, statistic = measures(full, other.of("forget")).set_index("measure")["value"][
        ["forget_quality", "ks_statistic"]
    ]
    assert told("Beside that one the utility is #, and D = # with a forget quality of #") == [
        round(model_utility(other), 3),
        round(statistic, 2),
        float(f"{p:.0e}"),
    ]
    areas = told("on Llama-2-7B: the area is # beside SimNPO's #")
    assert areas == told("The areas above stay # and #")
    (order,) = told("goes with length: the rank correlation is #")
    (stays,) = told("and the rank correlation is #")
    for logs, said in ((retrained, order), (other, stays)):
        table = diagnose(full.of("forget"), logs.of("forget"), sources.objectives())
        pushed = bias(table, resamples=100).query("effort == 'push' and need == 'per_token'")
        area = pushed.set_index("objective")["area"]
        assert [round(area[name], 2) for name in ("npo_b0.1", "simnpo_b4.5")] == areas
        assert round(float(spearman(*table[["length", "needed"]].to_numpy().T)), 2) == said
    assert told(r"turns the order round \(#\)") == [-order]
