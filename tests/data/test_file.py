"""A user's own table."""

import pytest
import torch

from paperworks.data import Accepts, load
from paperworks.study.errors import UserError

ALL = (1.0, 0.0, 0.0)


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "table.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"file:{path}"

    return write


def by_source(part):
    order = part.ids.argsort()
    return part.x[order].tolist(), part.y[order].tolist()


def test_the_last_column_is_the_target(table):
    data = load(table("a,b,kind\n1,2.5,cat\n3,4,dog\n5,6,cat\n"), sizes=ALL)
    assert (data.kind, data.classes) == ("table", ["cat", "dog"])
    assert by_source(data.train) == ([[1, 2.5], [3, 4], [5, 6]], [0, 1, 0])
    assert data.train.x.dtype == torch.float32
    assert data.train.y.dtype == torch.int64


def test_another_column_as_target(table):
    data = load(table("a,b,c\n1,2,3\n4,5,6\n") + "?target=b", sizes=ALL)
    assert by_source(data.train) == ([[1, 3], [4, 6]], [0, 1])


def test_whole_numbers_are_classes_in_numeric_order(table):
    data = load(table("a,y\n1,10\n2,9\n3,10\n"), sizes=ALL)
    assert data.classes == ["9", "10"]
    assert by_source(data.train)[1] == [1, 0, 1]


def test_decimals_are_a_quantity(table):
    data = load(table("a,y\n1,10.0\n2,9\n3,1e1\n"), sizes=ALL)
    assert data.classes == []
    assert by_source(data.train)[1] == [10, 9, 10]
    assert data.train.y.dtype == torch.float32


def test_the_mark_of_a_spreadsheet_is_no_part_of_the_first_name(table):
    data = load(table("\ufeffy,a\n0,1\n1,2\n") + "?target=y", sizes=ALL)
    assert by_source(data.train) == ([[1], [2]], [0, 1])


def test_words_that_pandas_takes_for_missing_are_classes(table):
    assert load(table("a,y\n1,NA\n2,None\n"), sizes=ALL).classes == ["NA", "None"]


def test_standard_scale_and_a_constant_column(table):
    rows = "".join(f"{i},7,{i % 2}\n" for i in range(10))
    x = load(table("a,b,y\n" + rows), sizes=ALL, scale="standard").train.x
    torch.testing.assert_close(x[:, 0].std(correction=0), torch.tensor(1.0))
    assert x[:, 1].eq(0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown column"),
        ("a,y\n", "has no row with a value of the target 'y'"),
        ("a,y\n1,\n2,3\n", "has rows without a value of the target 'y'"),
        ("y\n1\n2\n", "has no column beside the target 'y'"),
        ("a,y\n1,2\n3,4,5\n", r"line 3: 3 cells under a header of 2"),
        ("a,b,y\n1,2,0\n3,red,1\n", r"column 'b', sample 2: 'red' is not a finite number"),
        ("a,b,y\n1,2,0\n3,,1\n", r"column 'b', sample 2: '' is not a finite number"),
        ("a,y\ninf,0\n1,1\n", r"column 'a', sample 1: .*inf.* is not a finite number"),
        ("a,y\n1,nan\n1,2.5\n", r"column 'y', sample 1: 'nan' is not a finite number"),
        (b"a,y\n1,\xff\xfe\n", "as a CSV file"),
    ],
)
def test_bad_tables_are_one_line(table, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load(table(text))
    assert "\n" not in str(caught.value)


def test_no_such_file_or_column(table, tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load(f"file:{tmp_path}/nothing.csv")
    with pytest.raises(UserError, match=r"unknown column of table.csv 'prise': did you mean price"):
        load(table("a,price\n1,2\n") + "?target=prise")


def test_checks_and_digest(table):
    name = table("a,y\n1,0\n2,0\n")
    rule = Accepts("table", min_classes=2)
    with pytest.raises(UserError, match="has 1 class, this study needs at least 2"):
        rule.check(name)
    first = rule.digest(name)
    assert len(first) == 64
    rule.check(table("a,y\n1,0\n2,1\n"))
    assert rule.digest(name) != first
    with pytest.raises(UserError, match="has no classes, this study needs at least 2"):
        rule.check(table("a,y\n1,0.5\n2,1\n"))
    with pytest.raises(UserError, match="is a table, this study takes pictures"):
        Accepts("image").check(name)
