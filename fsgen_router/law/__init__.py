"""How often a pair disagrees, against the sizes of its models: FS-GEN's law and two that are simpler.

::

    from fsgen_router.law import fit_cell, predict, published_table

    cell = published_table().cell("oracle", "gsm8k")
    fit = fit_cell(cell)
    fit.forms["power"].values          # a, alpha, b
    predict(fit, fast=0.5, slow=7)     # with its band

With R = slow / fast, the ratio of the parameter counts, three forms are fitted to a cell (one method on one
data set):

``power``
    -a R^(-alpha) + b, all three at least 0.05: FS-GEN's law (arXiv 2406.12295, section 4).
``log``
    c0 + c1 ln R, to which ``power`` tends as alpha goes to 0.
``sizes``
    c0 + c1 ln slow + c2 ln fast: whether the ratio alone is enough (then c2 = -c1).

Everything is computed with numpy; nothing here loads a model.
"""

from .cells import CellFit, fit_cell
from .fitting import ALPHA_MAX, FLOOR, FORMS, Fit, FormName
from .prediction import Prediction, Trust, check_sizes, predict, trust
from .tables import COLUMNS, SOURCE, Cell, Table, make_table, published_table, read_table, size_text

__all__ = [
    "ALPHA_MAX",
    "COLUMNS",
    "FLOOR",
    "FORMS",
    "SOURCE",
    "Cell",
    "CellFit",
    "Fit",
    "FormName",
    "Prediction",
    "Table",
    "Trust",
    "check_sizes",
    "fit_cell",
    "make_table",
    "predict",
    "published_table",
    "read_table",
    "size_text",
    "trust",
]
