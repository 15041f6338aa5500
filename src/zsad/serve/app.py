"""The application: endpoints, the page, and refusals as answers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import zsad
from zsad.serve.gate import Gate, problem_response
from zsad.serve.limits import Refusal
from zsad.serve.routes import router
from zsad.serve.service import Service

_STATIC = Path(__file__).parent / "static"
_BASE = Path(zsad.__file__).parent / "runs" / "templates" / "style.css"
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def _static_files() -> dict[str, tuple[bytes, str, str]]:
    """Return content, media type and tag of each file of the page by its address: nothing else can be asked for."""
    paths = {path.name: path for path in sorted(_STATIC.iterdir()) if path.suffix in _MEDIA}
    paths["base.css"] = _BASE  # the style that reports and this page share
    files = {}
    for name, path in paths.items():
        content = path.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        files[f"/static/{name}"] = (content, _MEDIA[path.suffix], tag)
    return files | {"/": files["/static/index.html"], "/api": files["/static/api.html"]}


def _add_pages(app: FastAPI) -> None:
    for address, (content, media, tag) in _static_files().items():

        async def page(
            request: Request, content: bytes = content, media: str = media, tag: str = tag
        ) -> Response:
            headers = {"etag": tag, "cache-control": "no-cache"}
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers=headers)
            return Response(content, media_type=media, headers=headers)

        app.add_route(address, page, methods=["GET", "HEAD"], include_in_schema=False)


def create_app(service: Service, *, token: str | None = None) -> FastAPI:
    """Return the application around a service, which it closes when it ends.

    Args:
        service: the model.
        token: that requests must carry; None: requests of this machine only.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="zsad",
        version=zsad.__version__,
        description="Zero-shot anomaly detection: what is wrong with an image, and where.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    _add_pages(app)
    _add_error_handlers(app)
    app.add_middleware(Gate, metrics=service.metrics, token=token)
    _describe_token(app, token)
    return app


def _describe_token(app: FastAPI, token: str | None) -> None:
    """Add the token, if one is needed, to the OpenAPI document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            if token is not None:
                schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
                schemes["token"] = {"type": "http", "scheme": "bearer"}
                schema["security"] = [{"token": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _add_error_handlers(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)  # registered for it alone
        return problem_response(error, request.state.request_id)

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method"}.get(error.status_code, "refused")
        answer = problem_response(
            Refusal(error.status_code, code, f"{error.detail}; see /api"), request.state.request_id
        )
        answer.headers.update(error.headers or {})
        return answer

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        refusal = Refusal(422, "parameter", f"{where} = {str(first['input'])[:80]!r}: {first['msg'].lower()}")
        return problem_response(refusal, request.state.request_id)

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(RequestValidationError, invalid)
