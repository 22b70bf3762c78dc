"""A view of the data: the chains of the Markov study and what they produce.

It also shows what a prefix tells about its origin.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, ListedColormap

from figures import style
from figures.views.sliders import RoundSlider, steps
from figures.views.view import WIDTH, Picture, View, heat
from markov.cases import CASES, COMPONENTS, component_generator, paper_chains

SHOWN = 12  # sequences
NAMES = ("retain", "forget 1", "forget 2")


def chains_view(
    *, case: str = "length", component: str = "forget1", leakage: float = 0.2, draw: int = 0
) -> View:
    """View one chain of a case: its transitions and sequences drawn from it.

    The last panel shows the Bayes law of the chain given a prefix: that of `Mixture.posterior`
    along the first sequence shown, which chain a causal model of the whole mixture can believe it
    reads. Raises `InvalidInput` for a leakage outside (0, 1).
    """
    given = replace(CASES[case], leakage=leakage, pretrain_components=COMPONENTS)
    states, lengths, every = given.states, given.lengths, given.mixture()
    longest = max(lengths.values())
    look: dict[str, Any] = {
        "style": {"description_width": "76px"},
        "layout": widgets.Layout(width="98%"),
    }
    controls = {
        "component": widgets.Dropdown(
            options=list(zip(NAMES, COMPONENTS, strict=True)),
            value=component,
            description="chain",
            **look,
        ),
        "leakage": RoundSlider(leakage, steps(0.01, 0.99, 0.05), "leakage"),
        "draw": widgets.IntSlider(draw, min=0, max=99, description="draw no.", **look),
    }
    with style.look():
        # The sequences and what is believed while reading one of them have one axis of tokens.
        figure, ((left, middle), (key, right)) = style.grid_figure(
            2, 2, WIDTH, 4.3, width_ratios=(1, 1.7), height_ratios=(1.25, 1)
        )
        transitions = heat(left, states, "transition matrix")
        empty = np.full((SHOWN, longest), np.nan)
        drawn = middle.imshow(
            empty, vmin=-0.5, vmax=states - 0.5, cmap=_palette(states), aspect="auto"
        )
        middle.set(
            title="sequences drawn from it, one per row",
            xlabel="token",
            yticks=(),
            xticks=range(0, longest, 5),
            xlim=(-0.5, longest - 0.5),
        )
        lines = [
            right.plot([], [], marker="o", ms=3.5, color=color, label=name)[0]
            for color, name in zip(("#000000", "#CC79A7", "#56B4E9"), NAMES, strict=True)
        ]
        right.set(
            xlim=(-0.5, longest - 0.5), ylim=(-0.04, 1.04), xlabel="tokens read of the first row"
        )
        right.set(ylabel="probability", xticks=range(0, longest, 5))
        key.legend(handles=lines, loc="upper center", title="the first row is of chain")
        key.set_axis_off()
        left.set_ylabel("state")
        scale = figure.colorbar(
            drawn,
            ax=key,
            ticks=range(states),
            label="state in the sequences",
            orientation="horizontal",
            fraction=0.12,
            pad=0,
        )
        scale.ax.tick_params(length=0, labelsize=8)

    def update(component: str, leakage: float, draw: int) -> None:
        # Made once for a picture: chains that are made anew are checked anew.
        chains = paper_chains(leakage, states, given.set_size)
        chain, length = getattr(chains, component), lengths[component]
        transitions.set_data(chain.transition.numpy())
        generator = component_generator(draw, COMPONENTS.index(component))
        tokens = chain.sample(SHOWN, length, generator)
        padded = np.full((SHOWN, longest), np.nan)
        padded[:, :length] = tokens.numpy()
        drawn.set_data(padded)
        posterior = replace(every, chains=tuple(chains)).posterior(tokens[:1])[0, : length - 1]
        for line, probability in zip(lines, posterior.T.numpy(), strict=True):
            line.set_data(np.arange(1, length), probability)

    return View(
        Picture(figure=figure, moving=(transitions, drawn, *lines), update=update), controls
    )


def _palette(states: int) -> Colormap:
    """Return shades of one colour for each set of three states, grey for nobody's state."""
    shades = [
        colormaps[name](place)
        for name in ("Greys", "RdPu", "Blues")
        for place in np.linspace(0.45, 0.85, states // 3)
    ]
    return ListedColormap([*shades, "#E8D27A"], name="states").with_extremes(bad="white")
