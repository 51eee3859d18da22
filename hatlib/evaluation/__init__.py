"""The papers' evaluation protocol: models on benchmarks, beside bicubic and what was published.

The library behind `hatlib evaluate`.
"""

from hatlib.evaluation.candidates import Candidate, bicubic, bicubic_luma, resolve_models
from hatlib.evaluation.protocol import Evaluation, ImageResult, Summary, evaluate
from hatlib.evaluation.report import as_json, as_table
from hatlib.evaluation.sheet import SheetRow, draw_sheet, sheet_rows

__all__ = [
    "Candidate",
    "Evaluation",
    "ImageResult",
    "SheetRow",
    "Summary",
    "as_json",
    "as_table",
    "bicubic",
    "bicubic_luma",
    "draw_sheet",
    "evaluate",
    "resolve_models",
    "sheet_rows",
]
