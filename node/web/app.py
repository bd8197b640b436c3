"""The status pages: what arrived, what became of it and why. They read and change nothing.

A page shows UIDs, states, reasons and our own findings; it never shows who the patient is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from node import clock
from node.errors import NotFound, WetreadError
from node.metrics import Registry
from node.settings import Settings
from node.states import DeliveryState, JobState, StudyState
from node.store import studies
from node.store.db import Database
from node.store.spool import Spool
from node.uids import is_readable_uid
from node.web import metrics, models, queries
from node.web.auth import Guard, read_token
from node.web.health import Health

_HERE = Path(__file__).parent
_PAGE, _MOST_PAGES = 50, 10_000
_TONES = {
    "good": {"DONE", "COMMITTED", "SENT"},
    "busy": {"RECEIVING", "COMPLETE", "ROUTED", "QUEUED", "RUNNING", "REPORTED", "PENDING", "SENDING", "COMMITTING"},
    "note": {"UNSUITABLE", "DROPPED"},
    "bad": {"FAILED", "DEAD", "CONFLICT"},
}
_WORDS = {
    "RECEIVING": "receiving",
    "CONFLICT": "in conflict",
    "COMPLETE": "complete",
    "ROUTED": "reading",
    "QUEUED": "waiting",
    "RUNNING": "reading",
    "REPORTED": "delivering",
    "UNSUITABLE": "not suitable",
    "COMMITTING": "committing",
}


def make_app(
    db: Database, settings: Settings, health: Health, registry: Registry | None = None, stow: ASGIApp | None = None
) -> Starlette:
    """Return the ASGI application; with a token it asks for it, without one it answers only to local host names.

    `stow` is the door for instances that come over HTTP; it is reached at `/dicom-web`.
    """
    token = read_token(settings.web.token_file)
    pages = Pages(db, settings, health, registry or Registry())
    middleware = [Middleware(Guard, token=token)]
    if token is None:  # a page elsewhere must not read ours through a name that resolves to this machine
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]))
    routes: list[BaseRoute] = [
        Route("/", pages.overview),
        Route("/studies/{uid}", pages.study),
        Route("/studies/{uid}/key-image-{number:int}.png", pages.key_image),
        Route("/models", pages.models),
        Route("/models/{name}", pages.model),
        Route("/models/{name}/{file}", pages.model_picture),
        Route("/healthz", pages.healthz),
        Route("/readyz", pages.readyz),
        Route("/metrics", pages.metrics),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
    ]
    if stow is not None:
        routes.append(Mount("/dicom-web", stow))
    handlers: dict[Any, Callable[..., Any]] = {HTTPException: pages.http_error, Exception: pages.server_error}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class Pages:
    """The handlers; each is a plain function that Starlette runs in a thread, since the database blocks."""

    def __init__(self, db: Database, settings: Settings, health: Health, registry: Registry) -> None:
        self._db, self._settings, self._health, self._registry = db, settings, health, registry
        self._spool = Spool(settings.spool.url, settings.spool.refuse_below)
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._templates.filters |= {"tone": _tone, "word": _word, "when": _when, "iso": clock.to_iso}

    def overview(self, request: Request) -> Response:
        """`/`: the studies, the latest first."""
        state = request.query_params.get("state", "").upper()
        page = _number(request.query_params.get("page", "1"))
        if (state and state not in list(StudyState)) or not 1 <= page <= _MOST_PAGES:
            raise HTTPException(400)
        found = queries.overview(self._db, state, _PAGE + 1, (page - 1) * _PAGE)
        counts = queries.counts(self._db)
        return self._page(
            "overview.html",
            studies=found[:_PAGE],
            state=state,
            page=page,
            more=len(found) > _PAGE,
            tiles=_tiles(counts),
            dead=counts["job"].get("DEAD", 0) + counts["delivery"].get("DEAD", 0),
            trouble={name: why for name, why in self._health.stages().items() if why},
        )

    def study(self, request: Request) -> Response:
        """`/studies/{uid}`: one study with its jobs, deliveries, history and reasons."""
        uid = self._uid(request)
        try:
            study = studies.show(self._db, uid)
        except NotFound:
            raise HTTPException(404) from None
        return self._page("study.html", study=study, images=queries.key_image_count(self._db, uid))

    def key_image(self, request: Request) -> Response:
        """`/studies/{uid}/key-image-N.png`: our Secondary Capture."""
        png = queries.key_image(self._db, self._spool, self._uid(request), request.path_params["number"])
        if png is None:
            raise HTTPException(404)
        return Response(png, media_type="image/png")

    def models(self, request: Request) -> Response:
        """`/models`: the Model Bundles that this node can use."""
        return self._page("models.html", models=models.overview(self._settings.worker.models))

    def model(self, request: Request) -> Response:
        """`/models/{name}`: one bundle with its figures and its card."""
        found = models.show(self._settings.worker.models, request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return self._page("model.html", model=found)

    def model_picture(self, request: Request) -> Response:
        """`/models/{name}/{file}`: a picture of a card."""
        path = models.picture(self._settings.worker.models, request.path_params["name"], request.path_params["file"])
        if path is None:
            raise HTTPException(404)
        return FileResponse(path)

    def healthz(self, request: Request) -> Response:
        """`/healthz`: this process answers."""
        return JSONResponse({"status": "ok"})

    def readyz(self, request: Request) -> Response:
        """`/readyz`: 200 when studies can be taken and read, 503 with what is wrong otherwise."""
        checks = {"database": self._try(lambda: queries.counts(self._db)), "spool": self._try(self._check_room)}
        checks |= self._health.stages()
        wrong = {name: why for name, why in checks.items() if why}
        body = {"status": "degraded" if wrong else "ready", "checks": {k: v or "ok" for k, v in checks.items()}}
        return JSONResponse(body, 503 if wrong else 200)

    def metrics(self, request: Request) -> Response:
        """`/metrics` for Prometheus."""
        text = metrics.render(self._db, self._settings, self._health, self._registry)
        return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})

    def http_error(self, request: Request, error: HTTPException) -> Response:
        """Answer with a page that repeats nothing of the request."""
        words = {404: "There is no such page or study here.", 405: "This page can only be read."}
        message = words.get(error.status_code, "The request was not understood.")
        return self._page("error.html", status=error.status_code, message=message)

    def server_error(self, request: Request, error: Exception) -> Response:
        """Answer an error of ours; Starlette logs it, the page says only what is ours to say."""
        message = str(error) if isinstance(error, WetreadError) else "The node could not answer. Its log says more."
        return self._page("error.html", status=500, message=message)

    def _page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        text = self._templates.get_template(template).render(
            **values, status=status, ae_title=self._settings.node.ae_title, now=clock.now()
        )
        return HTMLResponse(text, status)

    def _uid(self, request: Request) -> str:
        uid = str(request.path_params["uid"])
        if not is_readable_uid(uid):
            raise HTTPException(404)
        return uid

    def _check_room(self) -> None:
        self._spool.check_room(0)

    def _try(self, check: Callable[[], object]) -> str:
        try:
            check()
        except WetreadError as error:
            return str(error)
        return ""


def _tiles(counts: dict[str, dict[str, int]]) -> list[tuple[str, int, str]]:
    """Return (label, number, state to filter by) for the row of figures at the top."""
    study = counts["study"]
    waiting = study.get("COMPLETE", 0) + study.get("ROUTED", 0)
    return [
        ("receiving", study.get("RECEIVING", 0), "RECEIVING"),
        ("in work", waiting, "ROUTED"),
        *([("in conflict", study["CONFLICT"], "CONFLICT")] if study.get("CONFLICT") else []),
        ("done", study.get("DONE", 0), "DONE"),
        ("need a person", study.get("FAILED", 0), "FAILED"),
    ]


def _tone(state: str) -> str:
    return next((tone for tone, states in _TONES.items() if state in states), "note")


def _word(state: str) -> str:
    known = {*StudyState, *JobState, *DeliveryState}
    return _WORDS.get(state, state.lower() if state in known else "unknown")


def _when(seconds: float | None) -> str:
    return (clock.to_iso(seconds) or "").replace("T", " ").replace("Z", "") if seconds else "–"


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
