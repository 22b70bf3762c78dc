"""A view to watch and stop a training: pretrain what the cache lacks, then unlearn.

The model's transition matrix is in view all the while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch

from figures import style
from figures.views.player import Recording, record, transitions
from figures.views.view import WIDTH, Picture, View, heat, one_line
from markov.errors import InvalidInput
from markov.experiments import Experiment
from markov.models import Parameters
from markov.running.models import load_model, model_jobs, models_folder

PAUSE = 0.15  # least seconds between pictures, so that drawing does not slow the training down


class Cancelled(Exception):
    """The user stopped the training; whatever was finished is in the cache."""


class Training(widgets.VBox):
    """Buttons, progress and the model's transition matrix while an experiment is trained.

    There are the buttons `start` and `cancel`, a progress `bar` and a line of text. `result()`
    returns the recording: it waits for a training that runs, and trains here and now if nobody has
    started one.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.start = widgets.Button(description="train", button_style="primary")
        self.cancel = widgets.Button(description="cancel", disabled=True)
        self.bar = widgets.IntProgress(min=0, max=1, layout=widgets.Layout(width="300px"))
        self.message = widgets.HTML("not started")
        self.recording: Recording | None = None
        self._stop, self._drawn, self._thread = threading.Event(), 0.0, None
        self.view, self._show = _matrix(experiment)
        data = experiment.case.sample(experiment.pretraining.seed)
        self._probes = [tokens[: experiment.test_examples] for tokens in data.test.values()]
        self.start.on_click(self._begin)
        self.cancel.on_click(self._end)
        row = widgets.HBox(
            [self.start, self.cancel, self.bar, self.message],
            layout=widgets.Layout(flex_flow="row wrap", max_width="100%"),
        )
        super().__init__([row, self.view])

    def result(self) -> Recording:
        """Return the finished recording; raises `Cancelled` if the training was stopped."""
        if self._thread is not None:
            self._thread.join()
        elif self.recording is None:
            self._train()
        if self.recording is None:
            raise Cancelled("the training was stopped: press train and run this cell again")
        return self.recording

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.view.printed(super()._repr_mimebundle_(**options))

    def _begin(self, button: object) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        # Train in a thread, because a busy kernel would not react to the other button.
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def _end(self, button: object) -> None:
        self._stop.set()

    def _train(self) -> None:
        self._stop.clear()
        self.start.disabled, self.cancel.disabled, self.recording = True, False, None
        try:
            for job, label in zip(
                model_jobs(self.experiment),
                ("pretraining", "the model to compare with"),
                strict=True,
            ):
                load_model(models_folder(), job, partial(self._tick, label), progress=False)
            steps = self.experiment.steps
            self.recording = record(
                self.experiment,
                on_step=lambda step, now: self._tick("unlearning", step, steps, now),
                progress=False,  # the view has a bar of its own
            )
            self.message.value = "done"
        except Cancelled:
            self.message.value, self.bar.value = "stopped: what was finished is kept", 0
        except InvalidInput as error:
            self.message.value = one_line(error)
            if self._thread is None:
                raise
        finally:
            self.start.disabled, self.cancel.disabled = False, True

    def _tick(self, phase: str, done: int, total: int, parameters: Parameters) -> None:
        if self._stop.is_set():
            raise Cancelled
        if done < total and time.monotonic() - self._drawn < PAUSE:
            return
        self.bar.max, self.bar.value = total, done
        self.message.value = f"{phase}: step {done} of {total}"
        self._show(transitions(self.experiment.model, parameters, self._probes))
        self._drawn = time.monotonic()


def _matrix(experiment: Experiment) -> tuple[View, Callable[[np.ndarray], None]]:
    """Return a view of the model's matrix beside the chains' own rows, and what updates it."""
    states, chains, shown = experiment.case.states, experiment.case.chains(), {}
    shown["laws"] = np.full((states, states), 1 / states)
    truth = np.stack(
        [
            max((chain.transition[row] for chain in chains), key=_sure).numpy()
            for row in range(states)
        ]
    )
    with style.look():
        figure, ((left, right),) = style.grid_figure(1, 2, WIDTH, 3.1)
        image = heat(left, states, "model now")
        heat(right, states, "the chains' own rows").set_data(truth)
        left.set_ylabel("state")
    view = View(
        Picture(figure=figure, moving=(image,), update=lambda: image.set_data(shown["laws"])), {}
    )

    def show(laws: np.ndarray) -> None:
        shown["laws"] = laws
        view.redraw()

    return view, show


def _sure(law: torch.Tensor) -> float:
    return float(law.max())
