"""Bodies of requests: however they are cut into pieces, whole images come out or one clear refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="needs the extra serve")

from starlette.requests import ClientDisconnect, Request

from zsad.serve.limits import ByteBudget, Refusal, RequestLimits
from zsad.serve.uploads import Upload, read_uploads

BOUNDARY = "----Boundary7MA4YWxk"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
LIMITS = RequestLimits(max_bytes=4096, max_images=5)


def form(parts: Sequence[tuple[bytes, bytes]], *, end: bool = True) -> bytes:
    """A multipart body of (file name, content)."""
    lines = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n\r\n%s\r\n'
        % (BOUNDARY.encode(), name, content)
        for name, content in parts
    )
    return lines + (b"--%s--\r\n" % BOUNDARY.encode() if end else b"")


def read(
    pieces: Sequence[bytes | None],
    *,
    kind: str | None = FORM,
    limits: RequestLimits = LIMITS,
    budget: ByteBudget | None = None,
    headers: dict[str, str] | None = None,
) -> list[Upload]:
    """The images of a body that arrives in these pieces; after None the client hangs up."""
    waiting = list(pieces)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.sleep(3600)
        piece = waiting.pop(0)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    pairs = dict(headers or {}) | ({"content-type": kind} if kind is not None else {})
    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(name.encode(), value.encode()) for name, value in pairs.items()],
    }

    async def play() -> list[Upload]:
        found = []

        async def handle(upload: Upload) -> None:
            found.append(Upload(upload.name, upload.content))
            upload.drop()

        await read_uploads(Request(scope, receive), limits, handle, budget=budget)
        return found

    return asyncio.run(play())


def refusal(pieces: Sequence[bytes | None], **more: Any) -> Refusal:
    """Why such a body is refused."""
    with pytest.raises(Refusal) as caught:
        read(pieces, **more)
    assert "\n" not in caught.value.reason and caught.value.reason
    return caught.value


async def never(upload: Upload) -> None:
    """Fails: no image is whole."""
    raise AssertionError(upload.name)


contents = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from([b"", b"\r\n", b"--", f"\r\n--{BOUNDARY[:-1]}".encode(), b"\r\n--\r\n" * 40]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=80)
@given(contents, st.data())
def test_any_pieces_give_the_images_whole(images: list[bytes], data: st.DataObject) -> None:
    named = [(b"part %d.png" % index, content) for index, content in enumerate(images)]
    body = form(named)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    budget = ByteBudget(LIMITS.upload_bytes)
    found = read(pieces, budget=budget)
    assert [(one.name.encode(), one.content) for one in found] == named
    assert budget.reserved == 0


@settings(max_examples=150)
@given(st.binary(max_size=400), st.data())
def test_mutated_forms_end_in_images_or_a_refusal(noise: bytes, data: st.DataObject) -> None:
    body = bytearray(form([(b"a.png", noise), (b"b.png", noise[::-1])]))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(body) - 1))
        if data.draw(st.booleans()):
            body[place] = data.draw(st.integers(0, 255))
        else:
            del body[place : place + data.draw(st.integers(1, 30))]
        if not body:
            break
    budget = ByteBudget(LIMITS.upload_bytes)
    try:
        read([bytes(body)], budget=budget)
    except Refusal as error:
        assert 400 <= error.status < 500 and "\n" not in error.reason
    assert budget.reserved == 0


@pytest.mark.parametrize(
    "kind",
    [
        "image/png",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "IMAGE/Anything; x=y",
        None,
    ],
)
def test_a_raw_body_is_one_image(kind: str | None) -> None:
    [found] = read([b"ab", b"", b"c"], kind=kind)
    assert (found.content, found.name) == (b"abc", "image")


@pytest.mark.parametrize("kind", ["application/json", "text/html", "multipart/mixed; boundary=x", ""])
def test_other_kinds_are_refused(kind: str) -> None:
    assert refusal([b'{"path": "/etc/passwd"}'], kind=kind).status == 415


def test_a_compressed_body_is_refused() -> None:
    assert refusal([b"x"], kind="image/png", headers={"content-encoding": "gzip"}).code == "encoded"


@pytest.mark.parametrize(
    ("pieces", "status", "code"),
    [
        ([form([(b"a", b"x" * 100)], end=False)], 400, "broken_form"),
        ([form([(b"a", b"x" * 100)])[:-30]], 400, "broken_form"),
        ([b""], 400, "broken_form"),
        ([b"no form at all"], 400, "broken_form"),
        ([form([(b"%d" % n, b"x") for n in range(6)])], 413, "too_many_images"),
        ([form([(b"big.tif", b"x" * 4097)])], 413, "too_many_bytes"),
        ([form([(b"a", b"x")]) + b"junk" * 100_000], 413, "broken_form"),
        ([form([(b"a", b"x")]).replace(b'; filename="a"', b"")], 422, "not_a_file"),
        ([form([(b"a", b"x")]).replace(b"Content-Disposition", b"X-" + b"y" * 99_999)], 400, "broken_form"),
    ],
)
def test_broken_forms_are_refused(pieces: list[bytes], status: int, code: str) -> None:
    budget = ByteBudget(LIMITS.upload_bytes)
    found = refusal(pieces, budget=budget)
    assert (found.status, found.code) == (status, code)
    assert budget.reserved == 0


@pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'b' * 500}"])
def test_a_form_needs_a_boundary(boundary: str) -> None:
    assert refusal([b"x"], kind=f"multipart/form-data{boundary}").status == 400


def test_too_large_is_known_from_the_header_alone() -> None:
    pieces: list[bytes | None] = []  # nothing is ever sent: reading would wait for an hour
    found = refusal(pieces, kind="image/png", headers={"content-length": "4097"})
    assert (found.status, found.code) == (413, "too_many_bytes")
    assert "4,096" in found.reason


def test_a_lying_header_does_not_help() -> None:
    assert (
        refusal([b"x" * 3000, b"x" * 3000], kind="image/png", headers={"content-length": "5"}).status == 413
    )


def test_a_slow_client_is_cut_off() -> None:
    budget = ByteBudget(LIMITS.upload_bytes)
    limits = LIMITS.model_copy(update={"timeout": 0.05})
    body = form([(b"a.png", b"x" * 100)])
    waiting = iter([body[:90]])

    async def receive() -> dict[str, Any]:
        piece = next(waiting, None)
        if piece is None:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": piece, "more_body": True}

    async def play() -> None:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", FORM.encode())]}
        await read_uploads(Request(scope, receive), limits, never, budget=budget)

    with pytest.raises(Refusal) as caught:
        asyncio.run(play())
    assert caught.value.status == 408 and budget.reserved == 0


def test_dripping_does_not_help_but_waiting_for_the_service_is_free() -> None:
    limits = LIMITS.model_copy(update={"timeout": 0.2})
    body = form([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])
    third = len(body) // 3

    async def play(pause: float, *, slow_client: bool) -> int:
        pieces = [body[:third], body[third : 2 * third], body[2 * third :]]
        if slow_client:
            pieces = [body[n : n + 3] for n in range(0, len(body), 3)]

        async def receive() -> dict[str, Any]:
            if slow_client:
                await asyncio.sleep(pause)
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", FORM.encode())]}
        count = 0

        async def handle(upload: Upload) -> None:
            nonlocal count
            count += 1
            if not slow_client:
                await asyncio.sleep(pause)

        await read_uploads(Request(scope, receive), limits, handle)
        return count

    assert asyncio.run(play(0.3, slow_client=False)) == 3
    with pytest.raises(Refusal, match=r"0\.2 s"):
        asyncio.run(play(0.05, slow_client=True))


def test_who_hangs_up_leaves_nothing_behind() -> None:
    budget = ByteBudget(LIMITS.upload_bytes)
    with pytest.raises(ClientDisconnect):
        read([form([(b"a", b"x" * 500), (b"b", b"y" * 500)])[:800], None], budget=budget)
    assert budget.reserved == 0


def test_a_full_budget_refuses_and_gives_back() -> None:
    budget = ByteBudget(1000)
    budget.reserve(500)
    late = refusal([b"x" * 400, b"x" * 400], kind="image/png", budget=budget)
    assert (late.status, late.retry_after) == (429, 1)
    assert budget.reserved == 500


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"../../etc/passwd", "../../etc/passwd"),
        (b"\x1b[31mred\x07", "?[31mred?"),
        (b"\xe9t\xe9.png", "été.png"),
        ("Schraube ä.png".encode(), "Schraube ä.png"),
        (b"n" * 999, "n" * 200),
        ("a\u202eb".encode(), "a?b"),
        (b"", "image"),
    ],
)
def test_a_name_is_a_harmless_word(sent: bytes, shown: str) -> None:
    [upload] = read([form([(sent, b"content")])])
    assert upload.name == shown
