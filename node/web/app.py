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
from starlette.types import ASGIApp, Receive, Scope, Send

from node import clock
from node.errors import NotFound, Transient, WetreadError
from node.metrics import Registry
from node.settings import Settings
from node.states import DeliveryState, JobState, StudyState
from node.store import studies
from node.store.db import Database
from node.store.spool import Spool
from node.uids import is_readable_uid
from node.web import models, queries
from node.web.asking import Asker
from node.web.auth import HEADERS, Guard, read_token
from node.web.health import Health
from node.web.metrics import CONTENT_TYPE, Metrics

_HERE = Path(__file__).parent
_PAGE, _MOST_PAGES = 50, 10_000
_RETRY_AFTER_S = 10
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
        Route("/studies/{uid}/key-image-{number}.png", pages.key_image),
        Route("/models", pages.models),
        Route("/models/{name}", pages.model),
        Route("/models/{name}/{file}", pages.model_picture),
        Route("/healthz", pages.healthz),
        Route("/readyz", pages.readyz),
        Route("/metrics", pages.metrics),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
    ]
    if stow is not None:
        routes += [Route("/dicom-web", _Base(stow)), Mount("/dicom-web", stow)]
    handlers: dict[Any, Callable[..., Any]] = {
        HTTPException: pages.http_error,
        Transient: pages.unavailable,
        Exception: pages.server_error,
    }
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    app.router.redirect_slashes = False  # it leads to the host that the request names, and away from TLS
    return app


class _Base:
    """A mounted application at its address without the slash behind it, from which nobody is redirected."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        base = scope["path"]
        await self._app({**scope, "path": f"{base}/", "root_path": base}, receive, send)


class Pages:
    """The handlers; each is a plain function that Starlette runs in a thread, since the database blocks."""

    def __init__(self, db: Database, settings: Settings, health: Health, registry: Registry) -> None:
        self._db, self._settings, self._health = db, settings, health
        self._spool = Spool(settings.spool.url, settings.spool.refuse_below)
        self._database, self._disk = Asker("The database"), Asker("The spool")
        self._metrics = Metrics(db, settings, health, registry, self._database, self._disk)
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
        found, counts = self._database.ask(
            lambda: (queries.overview(self._db, state, _PAGE + 1, (page - 1) * _PAGE), queries.counts(self._db))
        )
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
            study, images = self._database.ask(
                lambda: (studies.show(self._db, uid), queries.key_image_count(self._db, uid))
            )
        except NotFound:
            raise HTTPException(404) from None
        return self._page("study.html", study=study, images=images)

    def key_image(self, request: Request) -> Response:
        """`/studies/{uid}/key-image-N.png`: our Secondary Capture."""
        uid, number = self._uid(request), _number(request.path_params["number"], otherwise=-1)
        png = self._database.ask(lambda: queries.key_image(self._db, self._spool, uid, number)) if number >= 0 else None
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

    async def healthz(self, request: Request) -> Response:
        """`/healthz`: this process answers, also while every thread waits for the database."""
        return JSONResponse({"status": "ok"})

    def readyz(self, request: Request) -> Response:
        """`/readyz`: 200 when studies can be taken and read, 503 with what is wrong otherwise."""
        checks = {
            "database": _try(lambda: self._database.ask(lambda: queries.counts(self._db))),
            "spool": _try(lambda: self._disk.ask(lambda: self._spool.check_room(0))),
        }
        checks |= self._health.stages()
        wrong = {name: why for name, why in checks.items() if why}
        body = {"status": "degraded" if wrong else "ready", "checks": {k: v or "ok" for k, v in checks.items()}}
        return JSONResponse(body, 503 if wrong else 200)

    def metrics(self, request: Request) -> Response:
        """`/metrics` for Prometheus."""
        return Response(self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    def http_error(self, request: Request, error: HTTPException) -> Response:
        """Answer with a page that repeats nothing of the request."""
        words = {404: "There is no such page or study here.", 405: "This page can only be read."}
        message = words.get(error.status_code, "The request was not understood.")
        answer = self._page("error.html", status=error.status_code, message=message)
        answer.headers.update(error.headers or {})
        return answer

    def unavailable(self, request: Request, error: Transient) -> Response:
        """Answer what did not work now and may soon, such as a database that is away; the stages log it."""
        answer = self._page("error.html", status=503, message=str(error))
        answer.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return answer

    def server_error(self, request: Request, error: Exception) -> Response:
        """Answer an error of ours; Starlette logs it, the page says only what is ours to say."""
        message = str(error) if isinstance(error, WetreadError) else "The node could not answer. Its log says more."
        answer = self._page("error.html", status=500, message=message)
        answer.headers.update(HEADERS)  # it passes by the middleware
        return answer

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


def _try(check: Callable[[], object]) -> str:
    """Return what is wrong, empty where nothing is."""
    try:
        check()
    except WetreadError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
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


def _number(text: str, otherwise: int = 0) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else otherwise
