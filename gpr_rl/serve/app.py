"""The HTTP application: `POST /recommend`, `GET /healthz`, `GET /metrics`."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gpr_rl.decoding import Closed, Overloaded, Recommender
from gpr_rl.decoding.serve import Answer
from gpr_rl.serve.metrics import HttpMetrics
from gpr_rl.serve.middleware import BodyLimit, Counted
from gpr_rl.serve.schemas import Body, Health, Listed, Problem, Several, Wanted
from gpr_rl.serve.world import ServedWorld, UnknownError

_PATHS = frozenset({"/recommend", "/healthz", "/metrics"})
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "The world has no such request or user."},
    413: {"model": Problem, "description": "The body is too large."},
    500: {"model": Problem, "description": "The search failed."},
    503: {"model": Problem, "description": "Overloaded or stopping; see `Retry-After`."},
}


def make_app(
    recommender: Recommender,
    world: Any,
    *,
    max_body_bytes: int = 65_536,
    max_in_flight: int | None = None,
) -> FastAPI:
    """Return the application that answers for a world; at its end it closes the recommender.

    Args:
        recommender: Made for that world.
        world: See `ServedWorld`.
        max_body_bytes: Of one HTTP request.
        max_in_flight: Requests for ads between their arrival and their response, at most; None:
            the recommender's queue and two batches. It also bounds what waits for the rankers.
    """
    desk = Desk(
        recommender,
        ServedWorld(world),
        recommender.max_queue + 2 * recommender.max_batch
        if max_in_flight is None
        else max_in_flight,
    )
    metrics = HttpMetrics(recommender)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(recommender.close)

    app = FastAPI(title="gpr_rl", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.recommender = recommender
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    app.add_middleware(Counted, metrics=metrics, paths=_PATHS)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)

    @app.post("/recommend", responses=_PROBLEMS)
    async def recommend(body: Body) -> Listed | Several:
        answers = await desk.serve(body.wanted())
        return answers[0] if body.requests is None else Several(answers=answers)

    @app.get("/healthz", responses={503: {"model": Health}})
    async def healthz(response: Response) -> Health:
        stats = recommender.stats()
        response.status_code = 503 if recommender.closed else 200
        return Health(
            status="draining" if recommender.closed else "ok",
            catalogue_version=recommender.version,
            queue_length=stats.queue_length,
            width=stats.width,
        )

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class Desk:
    """Takes requests for ads to the recommender and their answers back.

    Args:
        recommender: Made for that world.
        world: Looks up and describes.
        max_in_flight: Requests between arrival and answer, at most.
    """

    def __init__(self, recommender: Recommender, world: ServedWorld, max_in_flight: int) -> None:
        self._recommender, self._world = recommender, world
        self._max_in_flight, self._in_flight = max_in_flight, 0

    async def serve(self, wanted: Sequence[Wanted]) -> list[Listed]:
        """Return the answers in order.

        Raises:
            Overloaded: Too many requests; none of these is searched, or what was begun is dropped.
            Closed: The service is stopping.
            UnknownError: One that the world doesn't have.
            HTTPException: 422, more candidates than the service gives, or more requests than its
                queue would ever hold.
        """
        room, most = self._recommender.max_queue, self._recommender.num_candidates
        if len(wanted) > room:
            raise HTTPException(422, f"there may be {room} requests in a call at most")
        if any(one.num_candidates is not None and one.num_candidates > most for one in wanted):
            raise HTTPException(422, f"num_candidates may be {most} at most")
        if self._in_flight + len(wanted) > self._max_in_flight:
            raise Overloaded(self._in_flight, self._recommender.retry_after_s())
        self._in_flight += len(wanted)
        try:
            ids = self._world.request_ids(wanted)
            answers = await asyncio.to_thread(self._submit, ids, wanted)
            waited = (asyncio.wrap_future(answer) for answer in answers)
            await asyncio.gather(*waited, return_exceptions=True)
            found = [answer.result() for answer in answers]
            return await asyncio.to_thread(self._world.describe, ids, found, answers)
        finally:
            self._in_flight -= len(wanted)

    def _submit(self, ids: Sequence[int], wanted: Sequence[Wanted]) -> list[Answer]:
        """Submit all, or none where the queue has no room for all."""
        answers: list[Answer] = []
        try:
            for request, one in zip(self._world.requests(ids), wanted, strict=True):
                number = one.num_candidates
                answers.append(self._recommender.recommend(request, num_candidates=number))
        except (Overloaded, Closed):
            for answer in answers:
                answer.cancel()
            raise
        return answers


async def _overloaded(request: Request, error: Exception) -> JSONResponse:
    seconds = error.retry_after_s if isinstance(error, Overloaded) else 1.0
    after = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return JSONResponse({"detail": str(error)}, 503, headers=after)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 404)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Say what is wrong and where, without repeating what was sent."""
    assert isinstance(error, RequestValidationError)
    wrong = [{name: one[name] for name in ("type", "loc", "msg")} for one in error.errors()]
    return JSONResponse({"detail": wrong}, 422)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "the service failed; its log says why"}, 500)


_HANDLERS: dict[type[Exception], Any] = {
    Overloaded: _overloaded,
    Closed: _overloaded,
    UnknownError: _unknown,
    RequestValidationError: _invalid,
    Exception: _failed,
}
