"""The table of Keras's own tests (`keras_upstream.md`) names only tests that are there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = [
    line for line in Path(__file__).with_name("keras_upstream.md").read_text().splitlines() if line.startswith("| ")
][1:]
NAME = re.compile(r"(test_\w+\.py)::(test_\w+)")


def names_in(file):
    """The names of the test functions of a file, wherever it is below tests/."""
    (path,) = TESTS.rglob(file)
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_the_tests_of_a_row_exist(row):
    named = NAME.findall(row.split("|")[3])
    assert named, row
    assert [f"{file}::{test}" for file, test in named] == row.split("|")[3].strip().split(", ")
    for file, test in named:
        assert test in names_in(file), f"{file}::{test}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_the_tests_inside_keras_3_exist(row):
    column = row.split("|")[4].strip()
    named = NAME.findall(column)
    assert column == ", ".join(f"{file}::{test}" for file, test in named)
    for file, test in named:
        assert test in names_in(file), f"{file}::{test}"


def test_the_table_is_read():
    assert len(ROWS) > 40
