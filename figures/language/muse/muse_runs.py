"""Runs of unlearning on the generated news, which `muse_tradeoff` draws.

MUSE's measures are taken along the way. Six ways to forget the same articles start from one model:
gradient ascent alone, and with a retain term (GradDiff, with summed log-probabilities), and the
four corners with one. Models, runs and measures are kept in the cache under their settings and
their code.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import joblib
import pandas as pd

from figures.cache import Context, cached, is_cached
from figures.scale import Scale
from llm.data.muse import MuseData, news_data
from llm.data.news.corpus import News
from llm.evaluation.membership import Membership, membership
from llm.evaluation.muse import Measuring, evaluate_muse, every_epoch, numbers, unlearn_texts
from llm.models.kinds import NEWS
from llm.models.language_model import LanguageModel
from llm.models.small_news import NEWS_BUDGET, NewsModels, build, folder_of
from llm.sweeps.parallel import several
from llm.training.loop import Optimization
from llm.unlearning.unlearn import Unlearning
from markov.objectives import CORNERS, Objective, gradient_ascent

GRADDIFF = "summed_grad_diff"
ORIGINAL, RETRAINED = NEWS
SEED = 0


@dataclass(frozen=True, kw_only=True)
class NewsStudy:
    """How the small model forgets its news.

    Averages over tokens have the beta of SimNPO's released settings for MUSE and the largest retain
    weight that the paper has there. Beside a sum over the 255 scored tokens of a piece the retain
    weight is 255 times as large, which is the same balance, and beta smaller than NPO's usual 0.1:
    with that a piece is let go once it has lost half a nat per token, which no other measure than
    VerbMem notices. The optimisation is that of a small model.
    """

    models: NewsModels = NewsModels()
    epochs: int = 10
    measured: tuple[int, ...] = (2, 5, 10)
    batch: int = 8
    learning_rate: float = 5e-4
    beta: float = 0.01
    beta_per_token: float = 0.7
    retain_weight: float = 64.0
    retain_weight_per_token: float = 0.25
    measuring: Measuring = Measuring()

    def runs(self) -> dict[str, Unlearning]:
        """Return what is run, by name: gradient ascent, GradDiff with summed losses, the corners.

        A piece has 255 scored tokens, so that its lambda is 255 times that of the released form, a
        mean over tokens.
        """
        graddiff = self.unlearning(gradient_ascent())
        found = {"gradient_ascent": replace(graddiff, retain_term="none"), GRADDIFF: graddiff}
        for name, (reference, normalize) in CORNERS.items():
            beta = self.beta_per_token if normalize else self.beta
            found[name] = self.unlearning(Objective(beta, 0.0, reference, normalize))
        return found

    def unlearning(self, objective: Objective) -> Unlearning:
        """Return how one objective is run with a retain term."""
        return Unlearning(
            objective=objective,
            optimization=Optimization(
                epochs=self.epochs,
                batch=self.batch,
                learning_rate=self.learning_rate,
                budget=NEWS_BUDGET,
                seed=SEED,
            ),
            retain_term="cross_entropy",
            retain_weight=self.retain_weight_per_token
            if objective.normalize
            else self.retain_weight,
        )


def study(scale: Scale) -> NewsStudy:
    """Return the study of a scale.

    At quick scale it has a few articles and a model that learns them in seconds.
    """
    if not scale.quick:
        return NewsStudy()
    small = NewsModels(
        news=News(forget=8, holdout=8, retain=10, questions=2),
        width=64,
        depth=2,
        heads=2,
        mlp_width=128,
        vocabulary=512,
        piece=128,
        passes=16,
    )
    few = Measuring(verbmem_tokens=32, knowmem_tokens=12, resamples=200)
    return NewsStudy(models=small, epochs=4, measured=(2, 4), batch=4, measuring=few)


def measures(context: Context) -> pd.DataFrame:
    """Return all models' measures, made in several processes where the cache lacks them.

    There is a row per `method` (`original` and `retrained` among them), `epoch` (0 for these two)
    and `measure` (verbmem_forget, knowmem_forget, knowmem_retain, auc_forget, auc_retrained_forget,
    privleak_forget). It has `value`, `low`, `high`, and `retain_loss`, nats per token, and `status`
    of the run.
    """
    chosen, quiet, shown = study(context.scale), replace(context, progress=False), context.progress
    wanted = [*NEWS, *chosen.runs()]
    left = [one for one in wanted if not is_cached(context, __name__, _settings(chosen, one))]
    # The retrained model reads a third less than the original one. What is measured of it alone is
    # taken by the process that would wait otherwise, and not once more by every run.
    models: list[Any] = []
    if left and not folder_of(chosen.models, ORIGINAL).exists():
        models.append(joblib.delayed(_build)(quiet, ORIGINAL))
    if RETRAINED in left:
        models.append(joblib.delayed(_measured)(quiet, RETRAINED))
    elif left:
        models.append(joblib.delayed(_retrained)(quiet))
    several("models", models, n_jobs=context.n_jobs, progress=shown)
    several(
        "unlearning",
        [joblib.delayed(_measured)(quiet, one) for one in left if one != RETRAINED],
        n_jobs=context.n_jobs,
        progress=shown,
    )
    kept = replace(quiet, since=0.0)
    return pd.concat([_measured(kept, name) for name in wanted], ignore_index=True)


def _build(context: Context, kind: str) -> LanguageModel:
    return build(study(context.scale).models, kind, progress=False)


def _measured(context: Context, name: str) -> pd.DataFrame:
    """Return the measures of one model, or along one run, as `measures` has them."""
    chosen = study(context.scale)

    def compute() -> pd.DataFrame:
        data = news_data(chosen.models.news)
        base = _retrained(context)
        if name in NEWS:
            found = evaluate_muse(
                _build(context, name),
                data,
                retrained=base,
                settings=chosen.measuring,
                progress=context.progress,
            )
            epochs = pd.DataFrame(
                [{"epoch": 0, "retain_loss": float("nan"), "status": "ok", **numbers(found)}]
            )
        else:
            epochs = _unlearned(context, name, data, base)
        return _long(epochs).assign(method=name)

    return cached(context, __name__, _settings(chosen, name), compute)


def _settings(chosen: NewsStudy, name: str) -> dict[str, Any]:
    """Return what the measures of one model, or along one run, follow from."""
    settings: dict[str, Any] = {
        "models": chosen.models,
        "measuring": chosen.measuring,
        "name": name,
    }
    if name not in NEWS:
        settings |= {"unlearning": chosen.runs()[name], "measured": chosen.measured}
    return settings


def _retrained(context: Context) -> Membership:
    """Return the retrained model's scores, with which every other model's are compared."""
    chosen = study(context.scale)
    measuring = chosen.measuring
    options: dict[str, Any] = dict(
        k=measuring.k, max_length=measuring.max_length, budget=measuring.budget
    )

    def compute() -> pd.DataFrame:
        data = news_data(chosen.models.news)
        texts = (data.privleak_forget, data.privleak_holdout)
        found = membership(_build(context, RETRAINED), *texts, **options, progress=False)
        parts = (
            pd.DataFrame({"split": name, "score": own}) for name, own in found._asdict().items()
        )
        return pd.concat(parts, ignore_index=True)

    key = {"models": chosen.models, "membership": RETRAINED, **options}
    table = cached(context, __name__, key, compute)
    return Membership(
        *(table.loc[table["split"] == name, "score"].to_numpy() for name in Membership._fields)
    )


def _unlearned(context: Context, name: str, data: MuseData, base: Membership) -> pd.DataFrame:
    chosen, language = study(context.scale), _build(context, "original")
    measure = every_epoch(
        language, data, retrained=base, settings=chosen.measuring, epochs=chosen.measured
    )
    settings, piece = chosen.runs()[name], chosen.models.piece
    with warnings.catch_warnings():
        # That a run collapses is what the figure shows; gradient ascent always does.
        warnings.filterwarnings("ignore", "the model has collapsed|unlearning ends", RuntimeWarning)
        run = unlearn_texts(
            language, data, settings, length=piece, measure=measure, progress=context.progress
        )
    epochs = run.epochs
    return epochs[epochs["epoch"].isin(chosen.measured)]


def _long(epochs: pd.DataFrame) -> pd.DataFrame:
    """Turn a column per number into a row per measure."""
    known = ["epoch", "retain_loss", "status"]
    parts = []
    for name in (own.removesuffix("_low") for own in map(str, epochs) if own.endswith("_low")):
        columns = dict(
            zip((name, f"{name}_low", f"{name}_high"), ("value", "low", "high"), strict=True)
        )
        parts.append(epochs[[*known, *columns]].rename(columns=columns).assign(measure=name))
    return pd.concat(parts, ignore_index=True)
