"""The example of a web service: a real server, a real client, and what may go wrong between them."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fakes import Rules, fake_devices
from running import ROOT

from virnuc_async import Scorer, Settings
from virnuc_async.models.bundle import find
from virnuc_async.runs.plan import Plan

sys.path.insert(0, str(ROOT / "docs" / "examples" / "service"))
from app import Limits, create_app

JSON = {"content-type": "application/json"}


def reads(count: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [(f"read{number}", "".join(rng.choices("ACGT", k=150))) for number in range(count)]


def fasta(records: list[tuple[str, str]]) -> str:
    return "".join(f">{name}\n{bases}\n" for name, bases in records)


class Served:
    """The service on fake devices in this process, on a real socket."""

    def __init__(self) -> None:
        self.rules = Rules()
        self.devices, self.options, self.limits = 1, {}, Limits()
        self.client = httpx.AsyncClient()

    def scorer(self) -> Scorer:
        settings = Settings(tokens_per_batch=400)
        plan = Plan((), settings, find("tiny-500"), fake_devices(self.devices))
        return Scorer.of(plan, self.rules.scorer, **self.options)

    async def __aenter__(self) -> "Served":
        config = uvicorn.Config(
            create_app(self.scorer, self.limits), port=0, log_level="warning", lifespan="on"
        )
        self.server = uvicorn.Server(config)
        self.task = asyncio.create_task(self.server.serve())
        while not self.server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        (port,) = {s.getsockname()[1] for server in self.server.servers for s in server.sockets}
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        self.server.should_exit = True
        await self.task

    async def predict(self, content: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return await self.client.post("/predict", content=content, headers=headers)


@pytest.fixture
def served() -> Served:
    return Served()


async def test_fasta_fastq_and_json_get_the_same_answer(served: Served) -> None:
    (name, bases), *_ = reads(1)
    async with served:
        answers = [
            await served.predict(f">{name} more\n{bases[:70]}\n{bases[70:]}\n"),
            await served.predict(f"@{name}\n{bases}\n+\n{'I' * 150}\n"),
            await served.predict(f'{{"records": [{{"id": "{name}", "sequence": "{bases}"}}]}}', JSON),
        ]
        expected = (await _scored(served, [(name, bases)]))[0]
    assert [answer.status_code for answer in answers] == [200] * 3
    first, *others = (answer.json() for answer in answers)
    assert others == [first] * 2
    (one,) = first["predictions"]
    assert (one["id"], one["length"], one["verdict"]) == (name, 150, expected.verdict)
    assert one["mean_p_virus"] == expected.mean_p_virus
    assert [part["p_virus"] for part in one["fragments"]] == [p.p_virus for p in expected.fragment_scores]


async def _scored(served: Served, records: list[tuple[str, str]]):
    async with served.scorer() as scorer:
        return await scorer.score(records)


@pytest.mark.parametrize(
    ("content", "headers", "status", "detail"),
    [
        (">a\nACGTE\n", None, 422, "record 1 (a): 'E' is not a nucleotide letter"),
        ("/etc/passwd", None, 422, "neither FASTA nor FASTQ"),
        ("http://127.0.0.1/x.fa", None, 422, "neither FASTA nor FASTQ"),
        ("@a\nACGT\n+\nII\n", None, 422, "neither FASTA nor FASTQ"),
        ('{"records": [{"id": "a"}]}', JSON, 422, "JSON: records.0.sequence: Field required"),
        ('{"records": "reads.fa"}', JSON, 422, "JSON: records: Input should be a valid"),
        ("[", JSON, 422, "JSON: "),
        (fasta(reads(11)), None, 413, "more than 10 records"),
        (">a\n" + "A" * 1001 + "\n", None, 413, "a record has 1,001 bases; at most 1,000 are taken"),
        (">a\n" + "A" * 20_000 + "\n", None, 413, "the body has more than 10,000 bytes"),
    ],
)
async def test_what_is_refused(
    served: Served, content: str, headers: dict[str, str] | None, status: int, detail: str
) -> None:
    served.limits = Limits(bytes=10_000, records=10, length=1000)
    async with served:
        answer = await served.predict(content, headers)
        assert (await served.predict(fasta(reads(2)))).status_code == 200
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(detail)
    assert not served.rules.open


async def test_nothing_is_nothing(served: Served) -> None:
    async with served:
        assert (await served.predict("")).json() == {"predictions": []}
        assert (await served.predict('{"records": []}', JSON)).json() == {"predictions": []}


async def test_too_much_at_once_is_told_to_come_again(served: Served) -> None:
    served.rules.pause_after = 0
    served.options = {"max_waiting": 1}
    async with served:
        first = asyncio.create_task(served.predict(fasta(reads(5))))
        await served.rules.paused.wait()
        refused = await served.predict(fasta(reads(1)))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        served.rules.go_on.set()
        assert (await first).status_code == 200
        assert (await served.predict(fasta(reads(1)))).status_code == 200


async def test_the_work_of_a_client_who_leaves_is_dropped(served: Served) -> None:
    served.rules.pause_after = 2
    async with served:
        gone = asyncio.create_task(served.predict(fasta(reads(500))))
        await served.rules.paused.wait()
        gone.cancel()
        await asyncio.wait([gone])
        while 'status="499"' not in (await served.client.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        served.rules.go_on.set()
        assert (await served.predict(fasta(reads(3)))).status_code == 200
        text = (await served.client.get("/metrics")).text
    assert 'virnuc_requests_total{status="499"} 1.0' in text
    assert 'virnuc_requests_total{status="200"} 1.0' in text
    assert "virnuc_records_total 3.0" in text
    assert "virnuc_waiting_orfs 0.0" in text
    assert sum(len(batch) for _, batch in served.rules.seen) < 100


async def test_a_lost_device_is_not_noticed(served: Served) -> None:
    served.devices, served.rules.lost = 2, {"fake:1": 3}
    async with served:
        answers = await asyncio.gather(*(served.predict(fasta(reads(20, seed))) for seed in range(10)))
        assert (await served.client.get("/ready")).json() == {"ready": True}
    expected = [[one.max_p_virus for one in await _scored(Served(), reads(20, seed))] for seed in range(10)]
    assert [[one["max_p_virus"] for one in answer.json()["predictions"]] for answer in answers] == expected


async def test_without_devices_it_is_alive_and_not_ready(served: Served) -> None:
    served.rules.lost = {"fake:0": 1}
    async with served:
        assert (await served.client.get("/ready")).json() == {"ready": True}
        assert (await served.predict(fasta(reads(50)))).status_code == 503
        ready = await served.client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False})
        assert (await served.client.get("/health")).json()["status"] == "alive"
        refused = await served.predict(fasta(reads(1)))
    assert refused.status_code == 503
    assert "too many devices" in refused.json()["detail"] or "fake:0" in refused.json()["detail"]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Run the service as its documentation says, and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", "docs/examples/service"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, stderr=log, env=os.environ)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                assert httpx.get(f"{address}/ready").json() == {"ready": True}
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert "Application shutdown complete" in (tmp_path / "log").read_text()


async def each(address: str, records: list[tuple[str, str]], leaver: int) -> dict[int, dict]:
    """Ask for each record in a request of its own, 32 at a time; the client of one leaves."""
    room, answers = asyncio.Semaphore(32), {}

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        async with room:
            asked = asyncio.create_task(client.post("/predict", content=fasta([records[number]])))
            if number == leaver:
                await asyncio.sleep(0.002)
                asked.cancel()
                await asyncio.wait([asked])
            else:
                answers[number] = (await asked).json()["predictions"][0]

    async with httpx.AsyncClient(base_url=address, timeout=60) as client, asyncio.TaskGroup() as tasks:
        for number in range(len(records)):
            tasks.create_task(ask(client, number))
    return answers


@pytest.mark.parametrize(
    "count", [100, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
async def test_many_requests_of_which_one_is_given_up(address: str, count: int) -> None:
    records = reads(count)
    async with Scorer(Settings(devices=("cpu",))) as scorer:
        expected = await scorer.score(records)
    answers = await each(address, records, leaver=count // 2)
    assert set(range(count)) - set(answers) == {count // 2}
    for number, answer in answers.items():
        one = expected[number]
        assert (answer["id"], answer["verdict"]) == (records[number][0], one.verdict)
        found, right = answer["max_p_virus"], one.max_p_virus
        assert found == right if right is None else found == pytest.approx(right, abs=1e-5)
