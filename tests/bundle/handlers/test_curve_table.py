import pytest

from bundle.handlers.curve_table import TAGS, append_row, keep_rows_until, rows_of


def test_rows_come_back_below_one_line_of_names(tmp_path):
    table = tmp_path / "metrics.csv"
    append_row(table, {"iteration": 1, "epoch": 1, "train/recon_loss": 0.5, "train/unknown": 1.0})
    append_row(table, {"iteration": 2, "epoch": 1, "val/psnr": 20.0})
    first, second = rows_of(table)
    assert list(first) == ["iteration", "epoch", *TAGS]
    assert (first["train/recon_loss"], first["val/psnr"]) == ("0.5", "")
    assert (second["iteration"], second["val/psnr"]) == ("2", "20.0")


def test_only_later_rows_of_a_table_are_dropped_whatever_else_is_in_it(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_bytes(b"iteration,epoch\r\n9,1\r\n10,1\r\n\r\n11,2\r\n")
    keep_rows_until(table, 10)
    assert table.read_bytes() == b"iteration,epoch\r\n9,1\r\n10,1\r\n\r\n"
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.parametrize(("validated", "kept"), [(True, [1, 2, 2]), (False, [1, 2])])
def test_the_last_iteration_keeps_its_validation_only_if_that_was_done(tmp_path, validated, kept):
    table = tmp_path / "metrics.csv"
    for iteration, name in ((1, "val/psnr"), (2, "train/recon_loss"), (2, "val/psnr"), (3, "val/psnr")):
        append_row(table, {"iteration": iteration, "epoch": 1, name: 1.0})
    keep_rows_until(table, 2, validated)
    assert [int(row["iteration"]) for row in rows_of(table)] == kept


def test_a_torn_last_row_is_dropped(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_bytes(b"iteration,epoch\r\n9,1\r\n1")
    keep_rows_until(table, 10)
    assert table.read_bytes() == b"iteration,epoch\r\n9,1\r\n"


def test_a_table_of_another_version_keeps_its_columns(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text(
        "iteration,epoch,val/psnr,train/recon_loss\r\n1,1,,0.5\r\n", encoding="utf-8", newline=""
    )
    append_row(table, {"iteration": 2, "epoch": 1, "val/psnr": 20.0, "val/ssim": 0.9})
    append_row(table, {"iteration": 2, "epoch": 1, "train/recon_loss": 0.25})
    assert [list(row.values()) for row in rows_of(table)] == [
        ["1", "1", "", "0.5"], ["2", "1", "20.0", ""], ["2", "1", "", "0.25"],
    ]  # fmt: skip
    keep_rows_until(table, 2, validated=False)
    assert [row["train/recon_loss"] for row in rows_of(table)] == ["0.5", "0.25"]
