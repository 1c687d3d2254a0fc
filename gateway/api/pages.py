"""The chat page's files, read once at the start and served from memory; knows nothing of what they do.

`GET /` is index.html, `/web/…` the rest. A file is asked for again at each visit and answered by 304 while unchanged.
Paths are looked up, never opened, so no path leads out of the folder. The security headers are Limits' work.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.errors import NotFound

WEB = Path(__file__).parents[1] / "web"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    kind: str
    etag: str


def router(folder: Path = WEB) -> APIRouter:
    files = read_files(folder)
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    @router.head("/")
    async def index(request: Request) -> Response:
        return _answer(request, files.get("index.html"))

    @router.get("/web/{path:path}")
    @router.head("/web/{path:path}")
    async def file(path: str, request: Request) -> Response:
        return _answer(request, files.get(path))

    return router


def read_files(folder: Path) -> dict[str, File]:
    """All files below `folder` of a kind that a page needs, by their path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _KINDS)
    return {path.relative_to(folder).as_posix(): _read(path) for path in paths}


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, _KINDS[path.suffix], f'"{sha256(content).hexdigest()[:32]}"')


def _answer(request: Request, file: File | None) -> Response:
    if file is None:
        raise NotFound("There is no such file.")
    headers = {"etag": file.etag, "cache-control": "no-cache"}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "content-type": file.kind})
