"""
The smallest web service, with aiohttp: JSON pairs in, verdicts out. The one in service/ is for real use.

    curl -d '[["read 1", "ATGGCAGCTGCA"]]' http://127.0.0.1:8080/predict
"""

from collections.abc import AsyncIterator

from aiohttp import web

from virnuc_async import Scorer, ScorerBusy, Settings, VirnucError

SCORER = web.AppKey("scorer", Scorer)


async def predict(request: web.Request) -> web.Response:
    """Answer with the id, the verdict and the score of each record."""
    pairs = [(str(name), str(bases)) for name, bases in await request.json()]
    try:
        found = await request.app[SCORER].score(pairs, wait=False)
    except ScorerBusy as error:
        raise web.HTTPTooManyRequests(text=str(error), headers={"Retry-After": "1"}) from error
    except VirnucError as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from error
    return web.json_response([[one.contig, one.verdict, one.mean_p_virus] for one in found])


async def with_scorer(app: web.Application) -> AsyncIterator[None]:
    """Keep the model loaded while the service runs."""
    async with Scorer(Settings()) as scorer:
        app[SCORER] = scorer
        yield


def create_app() -> web.Application:
    """Return the service."""
    app = web.Application(client_max_size=1 << 20)
    app.router.add_post("/predict", predict)
    app.cleanup_ctx.append(with_scorer)
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1")
