"""A browser driven by the DevTools protocol over a pipe: real clicks and keys, nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

EXECUTABLE = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36}
_KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """A page in a headless browser of its own.

    Attributes:
        problems: what the page complained about: errors, and what its content policy forbade.
        requests: addresses it asked for.
    """

    def __init__(self, *, patience: float = 120.0) -> None:
        assert EXECUTABLE is not None
        self._patience = patience
        self._profile = tempfile.mkdtemp(prefix="zsad-browser-")
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        # The browser reads from descriptor 3 and writes to 4.
        shell = ("/bin/bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{answers}')
        self._process = subprocess.Popen(
            [*shell, EXECUTABLE, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._held = b""
        self._number = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM", "Accessibility"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self._patience
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser has gone"
            self._held += piece
        first, _, self._held = self._held.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.problems.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    def open(self, address: str) -> None:
        """Loads a page."""
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def look(self, *, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Sets the size of the window and the colours that the system prefers."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, *, seconds: float | None = None) -> Any:
        """Waits until an expression is true, and returns its value."""
        deadline = time.monotonic() + (self._patience if seconds is None else seconds)
        while not (value := self.run(expression)):
            assert time.monotonic() < deadline, f"never came true: {expression}"
            time.sleep(0.1)
        return value

    def text(self, query: str) -> str:
        """The text of an element, as it is drawn."""
        found: str = self.run(f"document.querySelector({json.dumps(query)}).innerText")
        return found

    def click(self, query: str) -> None:
        """A click of the mouse in the middle of an element, scrolled into view."""
        x, y = self._middle(query)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            pressed = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def hover(self, query: str) -> None:
        """The mouse over an element."""
        x, y = self._middle(query)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def hover_until(self, query: str, expression: str) -> None:
        """The mouse over an element, again wherever the page has moved it to, until an expression is true."""
        deadline = time.monotonic() + self._patience
        while not self.run(expression):
            assert time.monotonic() < deadline, f"never came true: {expression}"
            self.hover(query)
            time.sleep(0.1)

    def _middle(self, query: str) -> tuple[float, float]:
        place = self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(query)});"
            " one.scrollIntoView({block: 'nearest', behavior: 'instant'}); const box = one.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        return place[0], place[1]

    def press(self, key: str, *, times: int = 1, shift: bool = False) -> None:
        """Presses a key."""
        text = {"Enter": "\r", " ": " "}.get(key)
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                more = {"text": text} if text and kind == "keyDown" else {}
                self.send(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=key,
                    code="Space" if key == " " else key,
                    windowsVirtualKeyCode=_KEYS[key],
                    modifiers=8 if shift else 0,
                    **more,
                )

    def choose(self, query: str, paths: list[Path]) -> None:
        """Chooses files for an input, as its dialog would."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=query)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path) for path in paths], nodeId=node)

    def drop(self, query: str, paths: list[Path]) -> None:
        """Drags files from outside over an element and drops them."""
        x, y = self._middle(query)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, path: Path) -> None:
        """The window as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def names(self, role: str) -> list[str]:
        """What assistive technology calls the elements of a role."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [
            node.get("name", {}).get("value", "")
            for node in nodes
            if not node["ignored"] and node.get("role", {}).get("value") == role
        ]

    def downloads(self, folder: Path) -> Callable[[], list[Path]]:
        """Sends downloads into a folder; returns what lists the finished ones."""
        self.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        return lambda: sorted(path for path in folder.iterdir() if path.suffix != ".crdownload")
