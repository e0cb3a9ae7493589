"""Nothing that a file holds reaches terminal, log or CSV as anything but text."""

import ast
import csv
import importlib
import io
import logging
from pathlib import Path

import pytest

from bundle.run.command import Command, CommandLineError
from bundle.run.console import MessageFormatter, as_message, csv_cells, tell, tidy_console
from bundle.run.record import report_error
from bundle.run.rules import SettingsError

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = "a\x1b]0;owned\x07\u202ecod\r\u0085\u2028z"
SHOWN = r"a\x1b]0;owned\x07\u202ecod\r\x85\u2028z"


def test_what_is_told_keeps_its_lines_and_nothing_else_that_a_terminal_acts_on(capsys):
    tell(f"{HOSTILE}\nsecond")

    assert capsys.readouterr().out == f"{SHOWN}\nsecond\n"


def test_a_line_break_in_a_name_cannot_forge_a_line_of_the_log():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(MessageFormatter(logging.Formatter("%(levelname)s %(message)s")))
    name = f"{HOSTILE}\nINFO all is well"

    handler.handle(logging.LogRecord("x", logging.ERROR, "", 0, "%s: is damaged", (name,), None))

    assert stream.getvalue() == f"ERROR {SHOWN}\n  INFO all is well: is damaged\n"


def test_a_warning_of_a_script_that_set_up_no_log_is_a_message_too(capsys, monkeypatch):
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))
    log = logging.getLogger("a logger without any handler")
    log.propagate = False

    tidy_console()
    log.warning("%s: states no orientation", HOSTILE)

    assert capsys.readouterr().err == f"{SHOWN}: states no orientation\n"


def test_lines_that_are_indented_already_stay_as_they_are():
    assert as_message("2 volumes:\n  a: gone\nb\n") == "2 volumes:\n  a: gone\n  b\n"


@pytest.mark.parametrize("kind", [SettingsError, ValueError])
def test_an_error_is_told_without_raw_text_with_its_traceback_or_without(kind, capsys):
    try:
        raise kind(f"{HOSTILE}\nerror: none")
    except kind as error:
        report_error(kind, error, error.__traceback__)

    told = capsys.readouterr().err
    assert "\x1b" not in told and "\u202e" not in told
    assert told.endswith(f"{SHOWN}\n  error: none\n")
    assert ("Traceback" in told) == (kind is ValueError)


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
        ("@SUM(1)", "'@SUM(1)"), ("+1+1", "'+1+1"), ("-2+3", "'-2+3"), ("\t=1", "'\\t=1"), ("\r=1", "'\\r=1"),
        (HOSTILE, SHOWN), ("-1024", "-1024"), ("+1e5", "+1e5"), (-3.5, "-3.5"), (None, ""),
        (Path("=1.nii"), "'=1.nii"), (" =1", "' =1"), ("\uff1d1", "'\uff1d1"), ("\uff0b1", "'\uff0b1"),
        ("\v1", "\\x0b1"), ("\r1\n", "'\\r1\\n"), ("\x1c7", "\\x1c7"), ("", ""), (" -1", " -1"),
    ],
)  # fmt: skip
def test_a_cell_of_a_table_is_no_formula_and_a_number_stays_one(cell, written):
    text = io.StringIO()
    csv.writer(text).writerow(csv_cells([cell, "x"]))

    assert next(csv.reader(io.StringIO(text.getvalue(), newline=""))) == [written, "x"]


COMMANDS = [
    f"scripts.{path.relative_to(ROOT / 'scripts').with_suffix('').as_posix().replace('/', '.')}"
    for path in sorted((ROOT / "scripts").rglob("*.py"))
    if "parse_args(" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_repeats_the_words_of_its_user_as_text(name, capsys, monkeypatch):
    command = importlib.import_module(name)
    words = [f"--{HOSTILE}\nerror: none", "evaluate", HOSTILE]
    monkeypatch.setattr("sys.argv", [name, *words])

    with pytest.raises(SystemExit) as ended:
        command.main()

    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "\x1b" not in told and "\u202e" not in told and "\r" not in told
    assert told.splitlines()[-1].partition(" error: ")[2]  # the last line is the first of the message


def test_a_word_too_many_for_the_front_door_is_told_in_one_line():
    with pytest.raises(CommandLineError) as raised:
        Command([*"abcdefgh", f"{HOSTILE}\nerror: none"])

    assert str(raised.value) == (
        f"the command line cannot be read (Could not consume arg: {SHOWN}\\nerror: none); "
        "write each setting as --id value"
    )


def test_the_product_prints_through_the_edge_alone():
    own = {"bundle/run/console.py", "scripts/run.py"}  # the second prints its help before it imports anything
    paths = [*(ROOT / "bundle").rglob("*.py"), *(ROOT / "transforms").rglob("*.py")]
    paths += (ROOT / "scripts").rglob("*.py")
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in paths
        if path.relative_to(ROOT).as_posix() not in own
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "argparse.ArgumentParser")
    ]

    assert offenders == []
