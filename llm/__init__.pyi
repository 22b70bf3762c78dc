# The jobs of this package; `llm/__init__.py` loads each from where it is written here.
from .data.sources import read as read
from .jobs.estimating import estimate as estimate
from .jobs.evaluating import evaluate as evaluate
from .jobs.finetuning import finetune as finetune
from .jobs.knowing import known as known
from .jobs.muse import muse as muse
from .jobs.relearning import relearn as relearn
from .jobs.scoring import score as score
from .jobs.studying import study as study
from .jobs.sweeping import sweep as sweep
from .jobs.unlearning import unlearn as unlearn
from .jobs.weighing import allocation as allocation
from .jobs.weighing import diagnose as diagnose
from .jobs.weighing import weights as weights
from .models.source import load as load
from .unlearning.methods import method as method
from .unlearning.runs import read_run as read_run

__all__: list[str]
