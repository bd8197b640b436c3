"""The stage that makes jobs of complete studies: with the Model Bundles as they are on disk now, and without those
that are gone. What waits for one keeps nothing else from going on, neither a study nor the start of the node."""

from __future__ import annotations

import logging
import time

from node import bundles, trust
from node.bundles import Bundle
from node.errors import BundleError
from node.route import router
from node.settings import Routes, Settings
from node.store import studies
from node.store.db import Database
from node.store.spool import Spool
from node.web.health import Health

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 5.0
"""How often a bundle that is not there is looked for."""


class Routing:
    """The stage; `tick` belongs to one thread, `take` to any."""

    def __init__(self, db: Database, spool: Spool, settings: Settings, routes: Routes, health: Health) -> None:
        self._db, self._spool, self._health = db, spool, health
        self.take(settings, routes)

    def take(self, settings: Settings, routes: Routes) -> None:
        """Go by this configuration, and say which of its bundles cannot be used: better now than with a study.

        Neither ends the start: receiving must go on. Studies wait for a bundle that is not there or does not load;
        jobs for one that is not trusted become dead letters that can be tried again once it is.
        """
        self._settings, self._routes = settings, routes
        self._held: router.Held = {}
        self._look_again = 0.0
        for name in _named(routes):
            try:
                trust.find(name, settings)
            except BundleError as error:
                log.warning("%s", error, extra={"action": "bundle_not_usable", "bundle": name})
        self._absent = self._tell(self._found())

    def tick(self) -> int:
        """Route what is complete; a job names the digest of the bundle it was made for. Returns how many moved.

        What waits for a bundle is looked at every few seconds.
        """
        due = set(studies.to_route(self._db))
        waits = bool(self._held or self._absent)
        if due <= self._held.keys() and not (waits and time.monotonic() >= self._look_again):
            return 0
        found = self._found()
        moved = router.tick(self._db, self._spool, self._settings, self._routes, found, self._db.now, self._held)
        self._look_again = time.monotonic() + LOOK_AGAIN_S
        self._absent = self._tell(found)
        return moved

    def _found(self) -> dict[str, Bundle]:
        return {bundle.name: bundle for bundle in bundles.available(*self._settings.worker.folders)}

    def _tell(self, found: dict[str, Bundle]) -> frozenset[str]:
        """Show in `/readyz` which bundles are not there, and return their names."""
        absent = frozenset(_named(self._routes)) - found.keys()
        names = ", ".join(sorted(absent))
        if not absent:
            self._health.good("bundles")
        elif self._held:
            self._health.bad("bundles", f"{len(self._held)} studies wait for Model Bundle {names}; put it back")
        else:
            why = f"Model Bundle {names} is not there or does not load; put it back: studies of its routes will wait"
            self._health.bad("bundles", why)
        return absent


def _named(routes: Routes) -> list[str]:
    return sorted({model for route in routes.route for model in route.models})
