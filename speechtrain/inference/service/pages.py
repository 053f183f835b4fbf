"""The pages of the service: `/`, `/docs`, and what they load; none of it comes from another host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING

from starlette.responses import FileResponse, Response

from speechtrain.inference.service.refusals import Refusal

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from fastapi import FastAPI

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}
_HEADERS = {
    # Swagger UI styles elements, and draws with data: addresses
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Pages:
    """Answers with the files of the pages, each by its own name: no path of a request leads to a file."""

    def add_to(self, app: FastAPI) -> None:
        """Add the routes of the pages to an application."""
        for path, name in (("/", "index.html"), ("/docs", "docs.html"), ("/static/{name}", None)):
            app.add_api_route(path, self._answer(name) if name else self.static, methods=["GET"], include_in_schema=False)

    @cached_property
    def _files(self) -> dict[str, Traversable]:
        own = resources.files("speechtrain.inference.service") / "static"
        swagger = resources.files("fastapi_swagger") / "resources"
        files = {each.name: each for each in own.iterdir()}
        return files | {name: swagger / name for name in ("swagger-ui-bundle.js", "swagger-ui.css")}

    async def static(self, name: str) -> Response:
        """Answer with a file of the pages.

        Raises:
            Refusal: there is no such file.
        """
        file = self._files.get(name)
        if file is None:
            raise Refusal(404, "Not Found")
        kind = next((kind for ending, kind in _TYPES.items() if name.endswith(ending)), "application/octet-stream")
        return FileResponse(str(file), media_type=kind, headers=_HEADERS)  # in parts, of which a client that reads none gets two

    def _answer(self, name: str) -> Callable[[], Awaitable[Response]]:
        async def page() -> Response:
            return await self.static(name)

        return page
