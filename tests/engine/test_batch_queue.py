"""The queue of batches."""

import asyncio

import anyio
from fakes import Rules
from harness import PipelineHarness

from virnuc_async.engine.batch_queue import BatchQueue


async def test_batches_come_in_order_and_put_waits_while_full(bench: PipelineHarness) -> None:
    rules = Rules()
    await bench.run(rules)
    batches = [batch for _, batch in rules.seen][:4]
    queue = BatchQueue(2)
    await queue.put(batches[0])
    await queue.put(batches[1])
    with anyio.move_on_after(0.01) as scope:
        await queue.put(batches[2])
    assert scope.cancelled_caught
    assert await queue.get() is batches[0]
    assert repr(queue) == "<BatchQueue [1 ready, 1 in progress, open]>"
    await queue.put(batches[2])
    await queue.requeue(batches[3], batches[0])  # these two come first
    await queue.task_done()
    assert [await queue.get() for _ in range(4)] == [batches[3], batches[0], batches[1], batches[2]]


async def test_an_idle_device_waits_for_what_another_may_requeue(bench: PipelineHarness) -> None:
    rules = Rules()
    await bench.run(rules)
    batch = rules.seen[0][1]
    queue = BatchQueue(2)
    await queue.put(batch)
    await queue.close()
    assert await queue.get() is batch
    taken = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not taken.done()
    await queue.requeue(batch)
    await queue.task_done()
    assert await taken is batch
    await queue.task_done()
    assert await queue.get() is None
