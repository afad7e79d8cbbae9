"""
A web service that scores sequences: FASTA, FASTQ or JSON in the body, never a path or an address.

    pip install 'virnuc-async[service]'
    uvicorn app:app --app-dir docs/examples/service

    curl --data-binary @reads.fa http://127.0.0.1:8000/predict
"""

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
import dnaio
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, Field, ValidationError

from virnuc_async import (
    BadRecord,
    Predictions,
    Scorer,
    ScorerBusy,
    ScorerClosed,
    Settings,
    VirnucError,
    __version__,
)

Pair = tuple[str, str]

GONE = 499  # nobody reads this answer: the client has left
RETRY_SECONDS = 1


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    bytes: int = 8 << 20
    records: int = 10_000
    length: int = 1_000_000  # bases of a record


class Record(BaseModel):
    """A sequence in a JSON body."""

    id: Annotated[str, Field(max_length=1000)]
    sequence: str


class Body(BaseModel):
    """A JSON body."""

    records: list[Record]


class Metrics:
    """What Prometheus is told."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "virnuc_requests_total", "Requests, by how they ended", ["status"], registry=self.registry
        )
        self.seconds = Histogram("virnuc_request_seconds", "Time of a request", registry=self.registry)
        self.records = Counter("virnuc_records_total", "Records that were scored", registry=self.registry)
        self.waiting = Gauge("virnuc_waiting_orfs", "ORFs that wait to be scored", registry=self.registry)


def create_app(make_scorer: Callable[[], Scorer] = Scorer, limits: Limits | None = None) -> FastAPI:
    """Return the service; *make_scorer* is called when it starts, and the model is loaded once."""
    limits = limits or Limits()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with make_scorer() as scorer:
            app.state.scorer = scorer
            metrics.waiting.set_function(lambda: scorer.waiting)
            yield

    app = FastAPI(title="virnuc-async", version=__version__, lifespan=lifespan)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        with metrics.seconds.time():
            response = await _answer(request, request.app.state.scorer, limits)
        metrics.requests.labels(response.status_code).inc()
        metrics.records.inc(int(response.headers.get("x-records", 0)))
        return response

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive", "version": __version__}

    @app.get("/ready")
    async def ready(request: Request) -> Response:
        is_open = request.app.state.scorer.is_open
        return JSONResponse({"ready": is_open}, 200 if is_open else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _answer(request: Request, scorer: Scorer, limits: Limits) -> Response:
    """Return the predictions of the records in the body, or what is wrong with it."""
    try:
        records = _parse(await _body(request, limits), request.headers.get("content-type", ""), limits)
        found = await _unless_gone(request, lambda: scorer.score(records, wait=False))
    except HTTPException as refused:
        return _error(refused.status_code, str(refused.detail))
    except BadRecord as error:
        return _error(422, str(error))
    except ScorerBusy as error:
        response = _error(429, str(error))
        response.headers["retry-after"] = str(RETRY_SECONDS)
        return response
    except ScorerClosed:
        return _error(503, "the service is stopping")
    except VirnucError as error:
        return _error(503, str(error))
    if found is None:
        return _error(GONE, "the client has left")
    return JSONResponse(
        {"predictions": [_described(one) for one in found]}, headers={"x-records": str(len(found))}
    )


async def _body(request: Request, limits: Limits) -> bytes:
    """Read the body, but no more than is allowed."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limits.bytes:
            raise HTTPException(413, f"the body has more than {limits.bytes:,} bytes: send it in parts")
    return bytes(content)


def _parse(content: bytes, kind: str, limits: Limits) -> list[Pair]:
    records = _from_json(content) if kind.startswith("application/json") else _from_text(content, limits)
    if len(records) > limits.records:
        raise HTTPException(413, f"more than {limits.records:,} records: send them in parts")
    longest = max((len(sequence) for _, sequence in records), default=0)
    if longest > limits.length:
        raise HTTPException(413, f"a record has {longest:,} bases; at most {limits.length:,} are taken")
    return records


def _from_json(content: bytes) -> list[Pair]:
    try:
        body = Body.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise HTTPException(422, f"JSON: {place}: {first['msg']}") from None
    return [(record.id, record.sequence) for record in body.records]


def _from_text(content: bytes, limits: Limits) -> list[Pair]:
    records: list[Pair] = []
    try:
        with dnaio.open(io.BytesIO(content)) as file:
            for record in file:
                records.append((record.name, record.sequence))
                if len(records) > limits.records:
                    break
    except (dnaio.UnknownFileFormat, dnaio.FileFormatError, ValueError) as error:
        raise HTTPException(422, f"neither FASTA nor FASTQ: {error}") from None
    return records


async def _unless_gone(request: Request, work: Callable[[], Awaitable[Predictions]]) -> Predictions | None:
    """Do the *work*, and cancel it when the client leaves; then there is no result."""
    found: Predictions | None = None
    error: VirnucError | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        # Not raised in the group, which would wrap it.
        try:
            found = await work()
        except VirnucError as failure:
            error = failure
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    return found


def _described(one: Any) -> dict[str, Any]:
    return {
        "id": one.contig,
        "length": one.length,
        "verdict": one.verdict,
        "viral_fraction": one.viral_fraction,
        "mean_p_virus": one.mean_p_virus,
        "max_p_virus": one.max_p_virus,
        "fragments": [
            {"start": part.start, "end": part.end, "p_virus": part.p_virus} for part in one.fragment_scores
        ],
    }


def _error(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)


app = create_app(lambda: Scorer(Settings()))
