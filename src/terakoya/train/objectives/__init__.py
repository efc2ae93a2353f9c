"""Pretraining objectives as data: a plan in the recipe, a corruption that is a pure function of the step, a loss."""

from __future__ import annotations

from terakoya.train.objectives.ahead import Mtp
from terakoya.train.objectives.contrast import Contrast
from terakoya.train.objectives.detect import Rtd
from terakoya.train.objectives.entity import Entity
from terakoya.train.objectives.mask import Mlm
from terakoya.train.objectives.middle import Fim
from terakoya.train.objectives.mixture import Ul2
from terakoya.train.objectives.noise import Bart
from terakoya.train.objectives.pair import Nsp, Sop
from terakoya.train.objectives.permute import Permute
from terakoya.train.objectives.prefix import Prefix
from terakoya.train.objectives.spans import Spans
from terakoya.train.objectives.task import EXTRA as EXTRA
from terakoya.train.objectives.task import Causal as Causal
from terakoya.train.objectives.task import Plan as Plan
from terakoya.train.objectives.task import Task as Task
from terakoya.train.objectives.taught import Distil
from terakoya.train.objectives.taught import Taught as Taught

Objective = (
    Causal | Prefix | Mlm | Nsp | Sop | Rtd | Permute | Spans | Ul2 | Bart | Fim | Mtp | Distil | Contrast | Entity
)
