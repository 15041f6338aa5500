"""`zsad serve` under load: many clients, a share of them broken, huge or slow. Is any answer lost, swapped or wrong?

    python benchmarks/serve_load.py --out benchmarks/results/serve_load.md

Starts the service with the bundled model in a process of its own and sends drawn pictures, each unlike the others.
Clients that are told 429 wait as long as Retry-After says and come again. Each answer is compared with what
`zsad.load(...).predict` says of that very picture; memory is that of the service's process (Linux only). Ends with 1
where anything does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

MAX_BYTES = 4 * 1024 * 1024
CLOSE = 1e-4  # between two passes of the model over batches of different sizes


@dataclass
class Request:
    """What a client sends, and the status that is right."""

    kind: str
    body: bytes
    status: int = 200
    picture: int = -1
    media: str = "application/octet-stream"
    slow: bool = False


@dataclass
class Outcome:
    """What came of a request; `busy` counts the 429s before."""

    request: Request
    status: int = 0
    answer: Any = None
    busy: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass
class Memory:
    """Resident megabytes of a process by the share of requests that were answered."""

    pid: int
    found: list[tuple[float, float]] = field(default_factory=list)

    def note(self, share: float) -> None:
        try:
            text = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return
        kilobytes = next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS"))
        self.found.append((share, int(kilobytes) / 1024))

    def between(self, low: float, high: float) -> float:
        """Mean over that part of the run."""
        return float(np.mean([size for share, size in self.found if low <= share <= high]))


def draw(seed: int) -> bytes:
    """A picture unlike those of other seeds, of another size and kind."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(160, 900, 2))
    coarse = rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, format=("PNG", "JPEG", "TIFF", "BMP", "WEBP")[seed % 5])
    return stream.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it has so many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"\x78\x9c") + chunk(b"IEND", b"")


def bad_requests(count: int, rng: random.Random) -> list[Request]:
    """Requests of which none can be answered: 4xx with a reason is right."""
    whole = draw(1_000_000)
    made = [
        lambda: Request("truncated", whole[: rng.randrange(200, len(whole) // 2)], 422),
        lambda: Request("no image", rng.randbytes(5000), 422),
        lambda: Request("empty", b"", 422),
        lambda: Request("too many bytes", whole + bytes(MAX_BYTES), 413),
        lambda: Request("too many pixels", claims(60_000, 50_000), 413),
        lambda: Request("broken form", b"--x\r\nnonsense", 400, media="multipart/form-data; boundary=x"),
        lambda: Request("no image type", b"{}", 415, media="application/json"),
        lambda: Request("slow", whole, 408, slow=True),
    ]
    return [made[index % len(made)]() for index in range(count)]


def send(address: str, request: Request) -> Outcome:
    """Sends a request, again after each 429."""
    outcome, start = Outcome(request), time.perf_counter()
    place = urlsplit(address)
    while True:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=300)
        try:
            status, headers, body = _once(connection, request)
        except (OSError, http.client.HTTPException) as error:
            outcome.error = f"{type(error).__name__}: {error}"
            return outcome
        finally:
            connection.close()
        if status != 429:
            break
        outcome.busy += 1
        time.sleep(float(headers["retry-after"]))
    outcome.status, outcome.seconds = status, time.perf_counter() - start
    outcome.answer = json.loads(body)
    return outcome


def _once(connection: http.client.HTTPConnection, request: Request) -> tuple[int, dict[str, str], bytes]:
    if request.slow:
        connection.putrequest("POST", "/v1/predict")
        connection.putheader("Content-Type", request.media)
        connection.putheader("Content-Length", str(len(request.body)))
        connection.endheaders()
        connection.send(request.body[:100])
        # One byte now and then; the service has to lose patience before all of it is there.
        stop = threading.Event()

        def drip() -> None:
            position = 100
            while not stop.wait(1.0):
                try:
                    connection.send(request.body[position : position + 1])
                except OSError:
                    return
                position += 1

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        try:
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read()
        finally:
            stop.set()
            dripping.join()
    connection.request("POST", "/v1/predict", body=request.body, headers={"Content-Type": request.media})
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def start(options: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """The service on a free port, and its address."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "zsad", "serve", options.model, "--port", "0", "--device", "cpu"),
            *("--backend", "torch", "--calibration", "none", "--threads", str(options.threads)),
            *("--max-queue", str(options.max_queue), "--max-bytes", str(MAX_BYTES)),
            *("--timeout", str(options.timeout)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "ZSAD_TOKEN"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if " at " not in line:
        raise SystemExit(f"zsad serve said {line!r}")
    return process, line.split(" at ")[1].split()[0]


def run(address: str, requests: list[Request], clients: int, memory: Memory) -> list[Outcome]:
    """All requests, by so many clients at once."""
    waiting, outcomes, lock = iter(requests), [], threading.Lock()
    memory.note(0.0)

    def client() -> None:
        while True:
            with lock:
                request = next(waiting, None)
            if request is None:
                return
            outcome = send(address, request)
            with lock:
                outcomes.append(outcome)
                memory.note(len(outcomes) / len(requests))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def library(pictures: list[bytes], options: argparse.Namespace) -> dict[int, float]:
    """The score of each picture, as the library gives it for that picture alone."""
    from zsad.loading import load

    detector = load(options.model, device="cpu", backend="torch", calibration=None, threads=options.threads)
    return {number: detector.predict(picture).score for number, picture in enumerate(pictures)}


def wrong(outcomes: list[Outcome], pictures: list[bytes], expected: dict[int, float]) -> list[str]:
    """What is not as it has to be, a line each."""
    found = []
    for outcome in outcomes:
        request, answer = outcome.request, outcome.answer
        if outcome.error or outcome.status != request.status:
            found.append(
                f"{request.kind}: {outcome.error or outcome.status} {answer}, expected {request.status}"
            )
        elif request.status != 200:
            if not answer.get("detail") or "\n" in answer["detail"]:
                found.append(f"{request.kind}: no reason in {answer}")
        else:
            number = request.picture
            digest = hashlib.sha256(pictures[number]).hexdigest()
            if answer["sha256"] != digest or abs(answer["score"] - expected[number]) > CLOSE:
                found.append(f"picture {number}: {answer['score']}, expected {expected[number]}")
    spread = sorted(expected.values())
    if len(spread) > 1 and max(np.diff(spread)) == 0:
        found.append("all pictures have one score, so that swapped answers would not show")
    return found


def report(outcomes: list[Outcome], memory: Memory, seconds: float, bad: int, wrongs: int) -> str:
    """The table."""
    told = Counter((one.request.kind, one.status) for one in outcomes if one.request.status != 200)
    good = [one for one in outcomes if one.request.status == 200]
    times = np.percentile([one.seconds for one in good], (50, 95))
    lines = [
        "# The service under load",
        "",
        f"`python benchmarks/serve_load.py {' '.join(sys.argv[1:])}`, {os.cpu_count()} cores shared with other work.",
        "",
        "| what | measured | bar |",
        "|---|---|---|",
        f"| requests, of them bad | {len(outcomes)}, {bad} | 500, 5 % |",
        f"| lost, swapped or wrong answers, bad requests without a 4xx and a reason | {wrongs} | 0 |",
        f"| answers of 429, after which the client came again | {sum(one.busy for one in outcomes)} | some |",
        f"| good requests answered | {sum(one.status == 200 for one in good)} of {len(good)} | all |",
        f"| seconds for all; median and 95th percentile of a good one, waiting included | {seconds:.0f}; "
        f"{times[0]:.1f}, {times[1]:.1f} | |",
    ]
    if memory.found:
        sizes = [memory.found[0][1], memory.between(0.1, 0.3), memory.between(0.45, 0.55)]
        sizes += [memory.between(0.95, 1.0), max(size for _, size in memory.found)]
        shown = ", ".join(f"{size:.0f}" for size in sizes)
        lines.append(
            f"| resident MB at the start, after a fifth, half and all of the requests, at most | {shown} | flat |"
        )
    lines += ["", "| bad requests | status | count |", "|---|---|---|"]
    lines += [f"| {kind} | {status} | {count} |" for (kind, status), count in sorted(told.items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="promptmoe-tiny")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--bad", type=float, default=0.05, help="share of bad requests")
    parser.add_argument("--pictures", type=int, default=120, help="different ones")
    parser.add_argument("--max-queue", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2, help="of the model")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds for an image to arrive, then to be answered"
    )
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rng = random.Random(0)
    pictures = [draw(seed) for seed in range(options.pictures)]
    bad = bad_requests(round(options.bad * options.requests), rng)
    numbers = [index % len(pictures) for index in range(options.requests - len(bad))]
    requests = bad + [Request("good", pictures[number], picture=number) for number in numbers]
    rng.shuffle(requests)
    expected = library(pictures, options)  # before, so that both are of the same model
    process, address = start(options)
    try:
        memory, began = Memory(process.pid), time.perf_counter()
        outcomes = run(address, requests, options.clients, memory)
        seconds = time.perf_counter() - began
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    finally:
        process.kill()
    wrongs = wrong(outcomes, pictures, expected)
    if code != 0:
        wrongs.append(f"the service ended with {code}")
    if memory.found and memory.between(0.95, 1.0) > 1.1 * memory.between(0.1, 0.3):
        wrongs.append("memory has grown by more than a tenth since the first fifth")
    text = report(outcomes, memory, seconds, len(bad), len(wrongs))
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    print(text)
    print("\n".join(wrongs[:20]))
    return 1 if wrongs else 0


if __name__ == "__main__":
    raise SystemExit(main())
