"""How inputs are broken: bytes, JSON, lines of text. All of it follows from the generator that is given."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

PATHS = (
    "../../escaped",
    "..",
    ".",
    "/",
    "~",
    "a/b/c",
    "..\\..\\escaped",
    "C:\\escaped",
    "con",
    "-rf",
    "%2e%2e%2fescaped",
    "line\nbreak",
    "\x1b[31mred",
    "nul\0byte",
    "\ud800",
    "é" * 300,
    " ",
    "",
    "\u202etxt.exe",
    "<script>alert(1)</script>",
)
"""Names that steer file systems, terminals, shells or browsers. `escaped` is what must never come to be."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    0.5,
    1e308,
    10**30,
    -(2**63),
    2**31,
    float("nan"),
    float("inf"),
    "",
    "0",
    "text",
    [],
    [[]],
    {},
    {"a": 1},
    [1, 2, 3],
    [0] * 5,
)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to three changes of a file's bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_ON_BYTES)(content, rng)
    return content


def _truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 64))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _head(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(min(len(changed), 200))] = rng.choice(
                (0, 1, 127, 128, 255, rng.randrange(256))
            )
    return bytes(changed)


def _number(content: bytes, rng: random.Random) -> bytes:
    """A length or a side becomes another, in either order of bytes."""
    if len(content) < 8:
        return content
    place = rng.randrange(min(len(content) - 4, 400))
    value = rng.choice((0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 100_000))
    packed = struct.pack(rng.choice((">I", "<I")), value)
    if rng.random() < 0.5:
        packed = struct.pack(rng.choice((">H", "<H")), value & 0xFFFF)
    return content[:place] + packed + content[place + len(packed) :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.randint(1, 200) :]


def _doubled(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start : start + rng.randint(1, 500)] * 2 + content[start:]


def _noise(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.randbytes(rng.randint(1, 300)) + content[start:]


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    start, count = rng.randrange(len(content) + 1), rng.randint(1, 400)
    return content[:start] + bytes(min(count, len(content) - start)) + content[start + count :]


_ON_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _truncated,
    _flipped,
    _head,
    _number,
    _cut,
    _doubled,
    _noise,
    _zeroed,
)


def mutate_json(value: Any, rng: random.Random, *, also: tuple[Any, ...] = ()) -> Any:
    """A copy with one to three values, keys or lists changed; `also` are further values to put in."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        what = rng.random()
        if what < 0.15:
            del holder[key]
        elif what < 0.25 and isinstance(holder, dict):
            holder[rng.choice(PATHS)] = holder.pop(key)
        elif what < 0.35 and isinstance(holder, list):
            holder.extend([holder[key]] * rng.choice((1, 5, 1000)))
        elif what < 0.45 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * rng.choice((-1, 0, 2, 1000, 10**6, 10**9))
        elif what < 0.5:
            holder[key] = _deep(rng.choice((50, 3000)))
        else:
            holder[key] = rng.choice((*VALUES, *PATHS, *also, *also))
    return changed


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys)[:60]:
        found.append((value, key))
        found += _places(value[key])
    return found


def _deep(levels: int) -> str:
    """Replaced by so many nested lists when written; the writer itself could not nest that deep."""
    return f"@deep{levels}@"


def json_bytes(value: Any) -> bytes:
    """The text of a mutated value."""
    text = json.dumps(value)
    for levels in (50, 3000):
        text = text.replace(f'"@deep{levels}@"', "[" * levels + "]" * levels)
    return text.encode()


def mutate_text(text: str, rng: random.Random, *, words: tuple[str, ...] = PATHS) -> bytes:
    """Lines and cells of a listing changed, or its bytes."""
    lines = text.split("\n")
    what = rng.randrange(8)
    place = rng.randrange(len(lines))
    if what == 0:
        lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
    elif what == 1:
        lines.insert(place, rng.choice(("", ",,,,", '"', "{", "[]", "null", "\0", "image", "=")))
    elif what == 2:
        lines.insert(place, lines[rng.randrange(len(lines))])
    elif what == 3:
        return mutate_bytes(text.encode(), rng)
    elif what == 4:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    elif what == 5:
        lines = [line.replace(",", rng.choice((";", "\t", "|", ", "))) for line in lines]
    else:
        cells = [cell for cell in lines[place].replace('"', ",").split(",") if cell.strip(" :{}")]
        if cells:
            lines[place] = lines[place].replace(rng.choice(cells), rng.choice(words), 1)
    return "\n".join(lines).encode("utf-8", "surrogatepass")
