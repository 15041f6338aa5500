"""Videos and cameras frame by frame, in constant memory. Needs the extra `video`.

Frames are numbered from 1 in the order shown; `clip.mp4#250` is the address of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from zsad.errors import ConfigError, ImageError

_PATIENCE = 10.0  # seconds that a camera may keep silent


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame: its number from 1, its time in seconds since the beginning, and the picture (RGB, upright)."""

    number: int
    seconds: float
    image: Image.Image


def iter_frames(source: str | Path, *, every: int = 1) -> Iterator[Frame]:
    """Yield the 1st, (1 + every)th, (1 + 2 every)th ... frame of a video or a camera.

    Args:
        source: a video file, an address such as rtsp://..., or a device such as /dev/video0.
        every: 1 takes all frames.

    Raises:
        ImageError: it cannot be opened, has no pictures, or is damaged: frames before that are yielded.
        ConfigError: `every` below 1, or PyAV is not installed.
    """
    if every < 1:
        raise ConfigError(f"every is {every}, expected 1 (all frames) or more")
    av, count = _av(), 0
    with _open(av, source) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise ImageError(f"{source} holds no pictures, only sound or data: name a video")
        stream.thread_type = "AUTO"
        with _errors(av, source), closing(container.decode(stream)) as frames:
            for count, frame in enumerate(frames, 1):
                if (count - 1) % every == 0:
                    yield Frame(count, _time(frame, count, stream), _picture(frame))
    if count == 0:
        raise ImageError(f"{source} holds no frame: it is empty or cut off, copy or record it again")


def read_frame(source: str | Path, number: int) -> Image.Image:
    """Return the frame of that number; all before it are decoded.

    Raises:
        ImageError: as `iter_frames`, or there are fewer frames.
    """
    for frame in iter_frames(source):
        if frame.number == number:
            return frame.image
    raise ImageError(f"{source} has {frame.number} frames, there is no frame {number}")


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigError("videos and cameras need PyAV, get it with: pip install 'zsad[video]'") from error
    av.logging.set_level(av.logging.PANIC)  # what is wrong is told by errors, in one line
    return av


@contextmanager
def _errors(av: Any, source: str | Path) -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()).lower()
        raise ImageError(
            f"{source} cannot be read as a video ({reason}): check the file or the address"
        ) from error


@contextmanager
def _open(av: Any, source: str | Path) -> Iterator[Any]:
    kind = "v4l2" if str(source).startswith("/dev/video") else None
    wait = None if Path(source).is_file() else (_PATIENCE, _PATIENCE)
    with _errors(av, source):
        container = av.open(str(source), format=kind, timeout=wait)
    try:
        yield container
    finally:
        container.close()


def _time(frame: Any, count: int, stream: Any) -> float:
    if frame.time is not None:
        start = stream.start_time
        begun = float(start * stream.time_base) if start is not None and stream.time_base else 0.0
        return round(float(frame.time) - begun, 6)
    rate = stream.average_rate
    return round((count - 1) / float(rate), 6) if rate else float(count - 1)


def _picture(frame: Any) -> Image.Image:
    picture: Image.Image = frame.to_image()
    degrees = int(getattr(frame, "rotation", 0) or 0) % 360  # against the clock, as telephones write them
    return picture.rotate(degrees, expand=True) if degrees else picture
