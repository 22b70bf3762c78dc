# The names that a study of chains takes; `markov/__init__.py` loads each from where it is written
# here.
from .cases import LENGTH as LENGTH
from .cases import MEMORISATION as MEMORISATION
from .cases import Case as Case
from .chains import MarkovChain as MarkovChain
from .chains import Mixture as Mixture
from .diagnostics import crossings as crossings
from .experiments import Experiment as Experiment
from .experiments import Pretraining as Pretraining
from .experiments import grid as grid
from .explanation import explain as explain
from .models import Tabular as Tabular
from .models import Transformer as Transformer
from .objectives import CORNERS as CORNERS
from .objectives import Objective as Objective
from .objectives import SequenceLogProbs as SequenceLogProbs
from .objectives import gradient_ascent as gradient_ascent
from .objectives import length_normalized_npo as length_normalized_npo
from .objectives import npo as npo
from .objectives import reference_free_npo as reference_free_npo
from .objectives import simnpo as simnpo
from .running.run import run as run
from .running.run import trajectory as trajectory
from .studies import ideal_forget_distance as ideal_forget_distance
from .theory import theta as theta
from .theory import time_to_forget as time_to_forget

__version__: str
__all__: list[str]
