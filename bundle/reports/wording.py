"""Says in plain English how each figure is called, its unit, which value is good, and what it means."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


class Word(NamedTuple):
    """How one figure is presented to people.

    Attributes:
        label: its name.
        form: format of Python for the number; a percent sign shows a share as per cent.
        unit: behind the number.
        good: what value is good.
        meaning: one or two sentences.
    """

    label: str
    form: str
    unit: str
    good: str
    meaning: str


_SAME = "as in the original"
WORDS = {
    "psnr": Word(
        "PSNR", ".2f", "dB", "high",
        "Error over all voxels; the data range is the HU window. It says little about emboli: a method that "
        "wipes them out can have the highest PSNR.",
    ),
    "ssim_2d": Word("SSIM, axial slices", ".4f", "", "near 1", "Similarity in windows of 7 x 7 pixels."),
    "ssim_3d": Word("SSIM in 3D", ".4f", "", "near 1", "Similarity in windows of 7 x 7 x 7 voxels."),
    "ms_ssim_2d": Word("MS-SSIM", ".4f", "", "near 1", "Similarity of axial slices at five scales."),
    "lpips": Word(
        "LPIPS", ".4f", "", "low", "Distance as people see it, estimated by a network, on 16 axial slices."
    ),
    "mae_hu": Word("Mean absolute error", ".1f", "HU", "low", "Mean distance of a voxel from its original."),
    "bias_hu": Word("Bias", "+.1f", "HU", "near 0", "Mean of reconstruction minus original."),
    "rmse_hu": Word(
        "Root mean squared error", ".1f", "HU", "low", "Large errors weigh more than small ones."
    ),
    "nps_ratio_low": Word(
        "Noise power in blood, coarse grain", ".2f", "", "near 1",
        "Reconstruction over original, lowest third of the frequencies. 0.5 means half of the noise power.",
    ),
    "nps_ratio_middle": Word(
        "Noise power in blood, medium grain", ".2f", "", "near 1", "Middle third of the frequencies."
    ),
    "nps_ratio_high": Word(
        "Noise power in blood, fine grain", ".2f", "", "near 1", "Highest third of the frequencies."
    ),
    "noise_sd_ratio": Word(
        "Noise in blood", ".2f", "", "near 1",
        "Standard deviation of the reconstruction over that of the original. Below 1 is smoother.",
    ),
    "gradient_ratio": Word(
        "Sharpness in the body", ".3f", "", "near 1",
        "Mean slope of the reconstruction over that of the original. Below 1 is smoother, above 1 sharper or "
        "noisier.",
    ),
    "edge_width_mm": Word(
        "Width of the lung's edge", ".2f", "mm", _SAME, "Distance over which density rises from 10 to 90 %."
    ),
    "edge_width_original_mm": Word(
        "Width of the lung's edge, original", ".2f", "mm", "", "The same edge in the original."
    ),
    "seam_score": Word(
        "Seams between tiles", ".3f", "", "1",
        "Jumps where tiles meet, compared with other planes as far apart. 1 means that they cannot be told "
        "apart; a step of 1 HU from tile to tile gave 1.02, of 3 HU 1.14.",
    ),
    "grid": Word(
        "Grid pattern", ".2f", "", "at most 1.5",
        "Power at periods of 2 and 4 voxels over power nearby. Real scans have 1.1 to 1.5.",
    ),
    "false_emboli": Word(
        "Invented emboli", ".3g", "per volume", "0", "Dark spots in vessels that the original does not have."
    ),
    "code_usage": Word("Codes in use", ".1%", "", "", "Share of the codebook that a volume uses."),
    "code_perplexity": Word(
        "Codes in use, by frequency", ".0f", "codes", "",
        "Perplexity: this many equally frequent codes would carry the same information.",
    ),
    "bits_per_voxel": Word("Size when stored", ".3f", "bit per voxel", "", "Size of the compressed file."),
    "bits_per_voxel_nominal": Word(
        "Size without compression", ".3f", "bit per voxel", "", "Bits of a code over its voxels."
    ),
    "clot_contrast": Word(
        "Contrast kept", ".0%", "", "near 100 %", "Share of an embolus' contrast in the reconstruction."
    ),
    "clot_contrast_lowest_tenth": Word(
        "Contrast kept, weakest tenth", ".0%", "", "near 100 %", "One embolus in ten keeps less than this."
    ),
    "clot_loc_mm": Word("Moved by", ".1f", "mm", "0", "How far the reconstruction moves an embolus."),
    "clot_auc_npw_original": Word(
        "Seen in the original", ".3f", "", "",
        "How often a simple reader, who knows size and place, tells a vessel with an embolus from one "
        "without (area under the ROC curve of a fixed template; 0.5 is guessing).",
    ),
    "clot_auc_npw": Word("Seen in the reconstruction", ".3f", "", _SAME, "The same reader."),
    "clot_auc_npw_change": Word(
        "Change", "+.3f", "", "near 0",
        "Seen in the reconstruction less seen in the original, by a simple reader at the same sites.",
    ),
    "clot_auc_cho_original": Word(
        "Seen by a trained reader, original", ".3f", "", "",
        "Channelized Hotelling observer, trained on other sites of the same volume.",
    ),
    "clot_auc_cho": Word("Seen by a trained reader", ".3f", "", _SAME, "In the reconstruction."),
    "clot_auc_cho_change": Word("Change, trained reader", "+.3f", "", "near 0", "Paired by site."),
}  # fmt: skip


def word_for(metric: str) -> Word:
    """Returns how a figure is presented to people; one without an entry is called by its name."""
    return WORDS.get(metric, Word(metric.replace("_", " "), ".4g", "", "", ""))


def spoken(
    metric: str, value: Any, low: Any = None, high: Any = None, with_unit: bool = True, signed: bool = False
) -> str:
    """Formats a figure for people, with its interval if there is one.

    Args:
        metric: its name.
        value: number, the word `inf`, or None or NaN where it is not known.
        low: lower end of the interval.
        high: upper end.
        with_unit: whether the unit follows the number.
        signed: whether a positive number gets a plus, for differences.
    """
    word = word_for(metric)
    if _is_unknown(value):
        return DASH
    form = f"+{word.form}" if signed and not word.form.startswith("+") else word.form
    text = _number(form, value)
    if not _is_unknown(low) and not _is_unknown(high):
        text += f" ({_number(form, low)} to {_number(form, high)})"
    if signed and "%" in form:
        return f"{text.replace(' %', '')} points"  # a difference of shares, which is no share of either
    return f"{text} {word.unit}" if with_unit and word.unit else text


def _number(form: str, value: Any) -> str:
    if isinstance(value, str) or math.isinf(value):
        return "\N{INFINITY}"
    if form.startswith("+") and float(f"{value:{form}}".rstrip("%")) == 0:
        form = form[1:]
        value = 0.0
    return f"{value:{form}}".replace("-", MINUS).replace("%", " %")


def _is_unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
