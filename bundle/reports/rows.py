"""Defines a row of an evaluation's tables, and how methods and regions are named there."""

from __future__ import annotations

import math
from typing import NamedTuple

from bundle.emboli.chest import Tissue

MODEL, PAIRS = "model", "pairs"
"""Methods that are judged; others are codecs to compare with."""
WHOLE = "whole"
REGIONS = {
    "body": tuple(tissue for tissue in Tissue if tissue != Tissue.OUTSIDE),
    "lung": (Tissue.LUNG,),
    "soft tissue": (Tissue.SOFT,),
    "vessel": (Tissue.VESSEL,),
    "bone": (Tissue.BONE,),
}


class Row(NamedTuple):
    """One figure; `value` is NaN where it could not be measured, and `note` says why."""

    volume: str
    patient: str
    method: str
    region: str
    metric: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 1
    note: str = ""
