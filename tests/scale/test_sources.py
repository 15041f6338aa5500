"""Where workers' images come from: every image in exactly one item, under one name, finished ones left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from zsad.errors import DataError
from zsad.scale import sources
from zsad.scale.sources import ImageFiles, find_images


def everything(images, rows: int = 2) -> list[tuple[str, object]]:
    return [pair for item in images.items(rows) for group in images.read(item, rows) for pair in group]


def test_files_are_cut_into_items(toy) -> None:
    images = find_images([str(toy.images)])
    names = sorted(str(path.absolute()) for path in toy.images.iterdir())
    assert isinstance(images, ImageFiles) and len(images) == 5
    assert everything(images) == [(name, name) for name in names]
    assert [len(item) for item in images.items(2)] == [2, 2, 1]
    left = images.without(frozenset(names[:3]))
    assert [name for name, _ in everything(left)] == names[3:] and len(left) == 2


def test_many_files_make_few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MOST_ITEMS", 10)
    images = ImageFiles(tuple(map(str, range(101))))
    assert len(images.items(2)) == 10
    assert [name for name, _ in everything(images)] == list(map(str, range(101)))


def test_addresses_are_listed(toy, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    images = find_images([toy.images.as_uri()])
    assert [Path(name).name for name, _ in everything(images)] == sorted(
        path.name for path in toy.images.iterdir()
    )
    assert all(name.startswith("file://") for name, _ in everything(images))
    one = next(toy.images.iterdir()).as_uri()
    assert everything(find_images([one])) == [(one, one)]
    with pytest.raises(DataError, match="does not exist"):
        find_images([(tmp_path / "no").as_uri()])
    with pytest.raises(DataError, match="holds no images"):
        find_images([tmp_path.as_uri()])
    with pytest.raises(DataError, match="cannot be read"):
        find_images(["no-such-store://bucket/x"])


@pytest.fixture
def parquet(tmp_path: Path):
    """Writes columns in row groups of three."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(name: str, **columns: object) -> str:
        parquet.write_table(arrow.table(columns), tmp_path / name, row_group_size=3)
        return str(tmp_path / name)

    return write


def test_rows_of_parquet_have_names(parquet) -> None:
    contents = [bytes([index]) for index in range(7)]
    plain = parquet("a.parquet", bytes=contents)
    assert everything(find_images([plain])) == [
        (f"{plain}#{n}", content) for n, content in enumerate(contents, 1)
    ]
    assert len(find_images([plain]).items(2)) == 3
    named = parquet("b.parquet", path=[f"p{index}" for index in range(6)] + [None], picture=contents)
    images = find_images([named], column="picture")
    assert [name for name, _ in everything(images)] == [*(f"p{index}" for index in range(6)), f"{named}#7"]
    left = images.without(frozenset({"p0", "p1", "p2", "p4"}))
    assert [content for _, content in everything(left)] == [contents[3], contents[5], contents[6]]
    assert len(left) == 3
    paths = parquet("c.parquet", path=["x.png", "y.png"])
    assert everything(find_images([paths])) == [("x.png", "x.png"), ("y.png", "y.png")]


def test_parquet_that_cannot_be_used(parquet, toy, tmp_path: Path) -> None:
    plain = parquet("a.parquet", bytes=[b"1"])
    with pytest.raises(DataError, match="--column"):
        find_images([parquet("b.parquet", other=[1])])
    with pytest.raises(DataError, match="two runs"):
        find_images([plain, str(toy.images)])
    with pytest.raises(DataError, match="no rows"):
        find_images([parquet("c.parquet", bytes=[])])
    (tmp_path / "d.parquet").write_bytes(b"text")
    with pytest.raises(DataError, match="as Parquet"):
        find_images([str(tmp_path / "d.parquet")])
    with pytest.raises(DataError, match="is for Parquet"):
        find_images([str(toy.images)], column="bytes")
