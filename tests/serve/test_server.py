"""The service on a real port: many clients at once, slow ones, overload, hang-ups, and the end."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from zsad_tests_serve_tools import Address, Process, Running, form, png, wait_for

from zsad.cli.main import main
from zsad.detector import Detector
from zsad.errors import ConfigError
from zsad.serve.server import bind
from zsad.serve.service import Service

Make = Callable[..., Service]
Run = Callable[..., Running]


class Gate:
    """Holds the model until it is opened."""

    def __init__(self, service: Service) -> None:
        self.open, self.entered, self.seen = threading.Event(), threading.Event(), list[str]()
        score = service._score

        def held(images: list[Any]) -> Any:
            self.seen += [image.name for image in images]
            self.entered.set()
            assert self.open.wait(60)
            return score(images)

        service._queue._work = held


@contextmanager
def raw(address: Address) -> Iterator[socket.socket]:
    """A connection by hand."""
    place = urlsplit(address.url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=60) as one:
        yield one


def heard(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    said = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            said += piece
    return said


HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


def test_each_of_many_images_gets_its_own_answer(run_service: Run, detector: Detector) -> None:
    server = run_service(batch=5, max_queue=16)
    images = [png(seed, size=(40 + seed % 7, 60)) for seed in range(64)]
    expected = [detector.predict(image).score for image in images]
    assert len(set(expected)) == len(expected)  # else a swap would go unnoticed

    def client(first: int) -> list[tuple[int, Any]]:
        return [(n, server.post("/v1/predict", images[n])) for n in range(first, 64, 16)]

    with ThreadPoolExecutor(16) as pool:
        answers = [pair for pairs in pool.map(client, range(16)) for pair in pairs]
    for number, answer in answers:
        assert answer.status == 200, answer.body
        assert answer.json["sha256"] == hashlib.sha256(images[number]).hexdigest()
        assert answer.json["score"] == pytest.approx(expected[number], abs=2e-6), number
    metrics = server.ask("/metrics").body.decode()
    passes = float(metrics.split("zsad_model_seconds_count ")[1].split()[0])
    assert passes <= 64 and "zsad_inside_images 0.0" in metrics
    assert server.service.capacity.borrowed_tokens == server.service.budget.reserved == 0


def test_overload_is_refused_and_never_piles_up(make_service: Make, run_service: Run) -> None:
    service = make_service(max_queue=3)
    gate = Gate(service)
    server = run_service(service=service)
    with ThreadPoolExecutor(12) as pool:
        first = [pool.submit(server.post, "/v1/predict", png(n)) for n in range(3)]
        wait_for(lambda: service.capacity.borrowed_tokens == 3)
        late = [pool.submit(server.post, "/v1/predict", png(n)).result(60) for n in range(3, 9)]
        for answer in late:
            assert (answer.status, answer.json["code"]) == (429, "busy")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert service.capacity.borrowed_tokens == 3
        gate.open.set()
        assert [one.result(60).status for one in first] == [200, 200, 200]
    assert server.post("/v1/predict", png(0)).status == 200


def test_an_answer_that_takes_too_long_is_504_and_keeps_its_place(
    make_service: Make, run_service: Run
) -> None:
    service = make_service(max_queue=2, timeout=0.4)
    gate = Gate(service)
    server = run_service(service=service)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda n: server.post("/v1/predict", png(n)), range(2)))
    assert [(one.status, one.json["code"]) for one in answers] == [(504, "too_slow")] * 2
    wait_for(
        lambda: service.capacity.borrowed_tokens == 1
    )  # the model still works on one; the other never came to it
    gate.open.set()
    wait_for(lambda: service.capacity.borrowed_tokens == 0)
    assert len(gate.seen) == 1


def test_who_hangs_up_frees_the_place(make_service: Make, run_service: Run) -> None:
    service = make_service(max_queue=2)
    gate = Gate(service)
    server = run_service(service=service)
    with ThreadPoolExecutor(1) as pool:
        stays = pool.submit(server.post, "/v1/predict", png(1))
        assert gate.entered.wait(60)
        with raw(server) as connection:
            body = png(2)
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait_for(lambda: service.capacity.borrowed_tokens == 2)
        wait_for(lambda: service.capacity.borrowed_tokens == 1)
        gate.open.set()
        assert stays.result(60).status == 200
    assert len(gate.seen) == 1


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_a_slow_head_is_cut_off(run_service: Run, sent: bytes) -> None:
    server = run_service(head_timeout=0.3)
    with raw(server) as connection:
        connection.sendall(sent)
        said = heard(connection)
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and json.loads(body)["code"] == "slow_head"


def test_a_slow_second_head_is_cut_off(run_service: Run) -> None:
    server = run_service(head_timeout=0.3)
    with raw(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(9) == b"HTTP/1.1 "
        connection.sendall(b"GET /healthz HT")
        start = time.monotonic()
        heard(connection)
        assert time.monotonic() - start < 10


def test_a_slow_body_is_cut_off(run_service: Run) -> None:
    server = run_service(timeout=0.4, head_timeout=3)
    with raw(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\n")
        said = b""
        start = time.monotonic()
        while b"\r\n\r\n" not in said and time.monotonic() - start < 30:
            with suppress(OSError):
                connection.sendall(b"x")
            connection.settimeout(0.05)
            with suppress(TimeoutError):
                said += connection.recv(65536)
        connection.settimeout(60)
        said += heard(connection)  # the head may come alone
    assert said.startswith(b"HTTP/1.1 408 ") and b"slow_upload" in said
    wait_for(lambda: not server.server.server_state.connections)


def test_who_never_reads_is_cut_off(run_service: Run) -> None:
    server = run_service(timeout=0.5)
    with raw(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with suppress(OSError):
            connection.sendall(ask * 2000)
        wait_for(lambda: not server.server.server_state.connections)
    assert server.ask("/healthz").status == 200


def test_a_refused_body_is_read_politely_to_its_end(run_service: Run) -> None:
    server = run_service(max_bytes=2000)
    for closing in ("close", "keep-alive"):
        answer = server.post("/v1/predict", b"x" * 30_000_000, Connection=closing)
        assert (answer.status, answer.json["code"]) == (413, "too_many_bytes")
    with raw(server) as connection:  # who waits to be asked is not asked
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_nonsense_is_answered_and_forgotten(run_service: Run) -> None:
    server = run_service()
    for sent in (
        b"\x16\x03\x01\x02\0" * 20,
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 100_000,
        b"GET /\0 HTTP/1.1\r\n\r\n",
    ):
        with raw(server) as connection:
            with suppress(OSError):
                connection.sendall(sent)
            with suppress(ConnectionError):
                assert connection.recv(10) in (b"HTTP/1.1 4", b"")
    assert server.ask("/healthz").status == 200


def test_so_many_connections_and_no_more(run_service: Run) -> None:
    server = run_service(connections=3)
    state = server.server.server_state
    with raw(server), raw(server), raw(server):
        wait_for(lambda: len(state.connections) == 3)
        with raw(server) as fourth:
            assert heard(fourth).startswith(b"HTTP/1.1 503 ")
    wait_for(lambda: not state.connections)
    assert server.ask("/healthz").status == 200


def test_so_many_batches_and_no_more(make_service: Make, run_service: Run) -> None:
    service = make_service(streams=1, max_queue=2)
    gate = Gate(service)
    server = run_service(service=service)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, "/v1/batch", [png(n) for n in range(6)])
        assert gate.entered.wait(60)
        assert server.post("/v1/calibrate", [png(1)]).json["code"] == "busy"
        gate.open.set()
        answer = first.result(60).json
    assert [row["sha256"] for row in answer["results"]] == [
        hashlib.sha256(png(n)).hexdigest() for n in range(6)
    ]
    assert service.streams == service.capacity.borrowed_tokens == 0


def test_answers_belong_to_one_calibration(run_service: Run) -> None:
    server = run_service(max_queue=32)
    made = {}
    for rate in (0.5, 0.1):
        answer = server.post(f"/v1/calibrate?target_fpr={rate}&confidence=0", [png(n) for n in range(60, 90)])
        made[rate] = answer.json["calibration"]
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for one in made.values():
                body = json.dumps(one).encode()
                assert (
                    server.ask("/v1/calibration", method="PUT", body=body, kind="application/json").status
                    == 200
                )

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda n: server.post("/v1/predict", png(n)).json, range(16)))
    finally:
        stop.set()
        thread.join(60)
    pairs = {(one["image"]["value"], one["pixel"]["value"]) for one in made.values()}
    assert len(pairs) == 2
    for answer in answers:
        assert (answer["threshold"], answer["pixel_threshold"]) in pairs
        assert answer["verdict"] == ("anomalous" if answer["score"] > answer["threshold"] else "normal")


def test_the_end_finishes_what_was_accepted(make_service: Make, run_service: Run) -> None:
    service = make_service(max_queue=12)
    gate = Gate(service)
    server = run_service(service=service)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(server.post, "/v1/predict", png(n)) for n in range(5)]
        many = pool.submit(server.post, "/v1/batch", [png(n) for n in range(10, 14)])
        wait_for(lambda: service.capacity.borrowed_tokens >= 6)
        with raw(server) as half:  # and one that is still on its way
            body = png(9)
            half.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:100])
            wait_for(lambda: len(server.server.server_state.tasks) == 7)
            stopping = pool.submit(server.stop)
            wait_for(lambda: not service.ready)
            time.sleep(0.3)
            half.sendall(body[100:])
            gate.open.set()
            assert heard(half).startswith(b"HTTP/1.1 200 ")
        assert [one.result(60).status for one in waiting] == [200] * 5
        assert many.result(60).json["failed"] == 0
        stopping.result(60)
    assert not service.alive
    with pytest.raises(OSError):
        server.ask("/healthz", timeout=5)


def test_a_process_ends_by_a_signal_with_all_answers_given(start: Callable[..., Process], toy: Any) -> None:
    server = start(str(toy.model), "--batch", "2")
    assert server.ask("/readyz").json == {"status": "ok"}
    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(server.post, "/v1/predict", png(n, size=(300, 400))) for n in range(12)]
        wait_for(lambda: any(one.done() for one in sent))
        code, said, complained = server.end(signal.SIGTERM)
        answers = []
        for one in sent:
            with suppress(ConnectionRefusedError, ConnectionResetError):  # came too late to be accepted
                answers.append(one.result(60))
    assert (code, complained) == (0, "")
    assert "every request that was accepted has been answered" in said
    assert len(answers) >= 1 and all(one.status == 200 for one in answers)


def test_a_process_behind_a_token(
    start: Callable[..., Process], toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSAD_TOKEN", "a-token-from-elsewhere")
    server = start(str(toy.model), "--host", "0.0.0.0", "--max-bytes", "5000", "--verbose")
    assert server.ask("/v1/models").status == 401
    known = {"Authorization": "Bearer a-token-from-elsewhere"}
    assert server.ask("/v1/models", **known).json["models"][0]["limits"]["max_bytes"] == 5000
    assert server.post("/v1/predict", png(1, size=(16, 16)), **known).status == 200
    code, _, complained = server.end(signal.SIGINT)
    assert code == 0
    assert "POST /v1/predict 200" in complained and "a-token-from-elsewhere" not in complained


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "a token is needed"),
        (["--host", "::"], "a token is needed"),
        (["--token", "short"], "5 characters"),
        (["--token", "spaces are not for headers"], "header cannot carry"),
        (["--port", "99999"], "--port is 99999"),
        (["--max-queue", "0"], "--max-queue is 0"),
        (["--timeout", "0"], "--timeout is 0"),
        (["--host", "no.such.host.invalid", "--token", "x" * 20], "cannot serve at no.such.host.invalid"),
    ],
)
def test_it_refuses_to_start(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZSAD_TOKEN", raising=False)
    assert main(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_taken_port_is_told_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        assert main(["serve", "no-such-model", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --port" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot serve"):
        bind("192.0.2.1", 0)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads the open files of the process")
def test_nothing_is_written_to_disk(run_service: Run) -> None:
    def opened() -> set[str]:
        found = set()
        for number in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                found.add(str(number.readlink()))
        return {path for path in found if path.startswith("/") and not path.startswith("/proc")}

    server = run_service()
    body, kind = form([("a.png", png(1, size=(1500, 1500)))])
    assert len(body) > 1_500_000  # as much as other servers put into a temporary file
    before = opened()
    with raw(server) as connection:
        head = HEAD.replace(b"image/png", kind.encode())
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-10])
        wait_for(lambda: server.service.budget.reserved > 1_000_000)
        assert opened() == before
        connection.sendall(body[-10:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
