"""FS-GEN's study on one's own models: how often a large model changes a small one's tokens, where, and what for.

A study runs pairs of models with methods on data sets, the slow model asked at every token, and reports for each
cell (pair, method, data set, seed) the collaboration frequency (CoF) with the quality of both models and of the
collaboration beside it, where the mismatches fall, and how well the fast model's uncertainty tells them.

::

    from fsgen_router.study import read_study, run_study, write_results

    study = run_study(read_study("study.toml"), work="study-work")
    write_results(study, "study-results")

Needs the extras ``eval`` and ``calibrate`` (figures, the page), and those of the backends.
"""

from .config import DatasetSpec, ModelSpec, PairSpec, StudyConfig, read_study
from .measures import CellResult
from .policies import PolicyResult
from .report import write_results
from .running import Study, probe_pair, run_study

__all__ = [
    "CellResult",
    "DatasetSpec",
    "ModelSpec",
    "PairSpec",
    "PolicyResult",
    "Study",
    "StudyConfig",
    "probe_pair",
    "read_study",
    "run_study",
    "write_results",
]
