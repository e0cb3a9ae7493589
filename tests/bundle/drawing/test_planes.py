"""Sheets keep every text where it belongs, whatever its length."""

from __future__ import annotations

import pytest

from bundle.drawing.planes import EMBOLISM, LABEL_PX, LINE_PX, SMALLEST_COLUMN_PX, Row, Sheet

LONG = "\N{HORIZONTAL ELLIPSIS}a_run_with_a_long_name/model_adversarial.pt \N{MINUS SIGN} original"


@pytest.mark.parametrize("title", [str(EMBOLISM), LONG, f"short\n{LONG}"])
def test_a_title_stays_over_its_column(title: str) -> None:
    sheet = Sheet([Row("Axial", 100, ["", title, ""])], n_columns=3, column_width=100)
    inked = sheet.to_array()[: 2 * LINE_PX].any(axis=(0, 2)).nonzero()[0]
    left = LABEL_PX + SMALLEST_COLUMN_PX
    assert left < inked.min() < left + 20 and inked.max() < left + SMALLEST_COLUMN_PX + 6


def test_a_line_below_the_panels_and_a_note_end_where_the_sheet_ends() -> None:
    sheet = Sheet([Row("Axial", 100)], n_columns=1, column_width=100)
    sheet.footer(LONG)
    sheet.note([LONG], 0, 0)
    inked = sheet.to_array()[:, LABEL_PX:].any(axis=2)
    assert inked[sheet.bottom :].any() and not inked[:, -2:].any()
    assert inked[: sheet.bottom].any() and not inked[: sheet.bottom, SMALLEST_COLUMN_PX:].any()
