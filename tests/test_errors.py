"""What every error of the package has in common."""

from __future__ import annotations

import pickle

import pytest

from zsad.errors import ConfigError, ImageError, ZsadError, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("part\n7.png", r"part\n7.png"),
        ("a\r\x1b[31mred", r"a\r\x1b[31mred"),
        ("line\u2028end", r"line\u2028end"),
        ("bytes\udcff.png", r"bytes\udcff.png"),
        ("Prüfling 7 – 部品.png", "Prüfling 7 – 部品.png"),
    ],
)
def test_names_of_files_never_break_the_line(name: str, shown: str) -> None:
    error = ImageError(f"{name} is empty: copy the file again")
    assert str(error) == f"{shown} is empty: copy the file again" and printable(name) == shown
    str(error).encode()  # any terminal and any file can take it


def test_errors_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("k is 9\nof 4")))
    assert isinstance(error, ZsadError) and str(error) == r"k is 9\nof 4" and error.exit_code == 2
