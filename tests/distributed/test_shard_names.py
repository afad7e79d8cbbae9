"""How a shard is named: by its number, or by that of a task of an array."""

import pytest

from virnuc_async.distributed.plan import Shard
from virnuc_async.errors import UsageError

AUTO = "none of SLURM_ARRAY_TASK_ID, AWS_BATCH_JOB_ARRAY_INDEX, JOB_COMPLETION_INDEX is set"
HOW = "a shard is written as NUMBER/COUNT, such as 3/100, or as auto/COUNT in a task of an array, not"


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("3/100", {}, Shard(3, 100)),
        ("0/1", {"SLURM_ARRAY_TASK_ID": "7"}, Shard(0, 1)),
        ("auto/100", {"SLURM_ARRAY_TASK_ID": "99", "SLURM_ARRAY_TASK_MAX": "99"}, Shard(99, 100)),
        # Only the shards that failed, once more.
        ("auto/100", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MAX": "8"}, Shard(7, 100)),
        ("auto/5", {"AWS_BATCH_JOB_ARRAY_INDEX": "0"}, Shard(0, 5)),
        ("auto/5", {"JOB_COMPLETION_INDEX": "4", "SLURM_ARRAY_TASK_ID": ""}, Shard(4, 5)),
    ],
)
def test_shards(text: str, environment: dict[str, str], shard: Shard) -> None:
    assert Shard.parse(text, environment) == shard


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("3", {}, f"{HOW} '3'"),
        ("3/", {}, f"{HOW} '3/'"),
        ("-1/3", {}, f"{HOW} '-1/3'"),
        ("1/3/5", {}, f"{HOW} '1/3/5'"),
        ("٣/٤", {}, f"{HOW} '٣/٤'"),
        ("3/3", {}, "there is no shard 3/3: shards are counted from 0 to 2"),
        ("0/0", {}, "there is no shard 0/0: shards are counted from 0 to -1"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7"}, f"{HOW} 'auto'"),
        ("auto/3", {}, f"--shard auto/3: {AUTO}"),
        ("auto", {}, f"--shard auto/COUNT: {AUTO}"),
        ("auto/3", {"JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX must be a number, not 'x'"),
        (
            "auto/3",
            {"AWS_BATCH_JOB_ARRAY_INDEX": "3"},
            "there is no shard 3/3: shards are counted from 0 to 2",
        ),
        # An array from 1 to 3: every task is refused, not only the last one.
        (
            "auto/3",
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MAX": "3"},
            "shards are counted from 0, and the tasks of this job to 3: use --array=0-2",
        ),
    ],
)
def test_what_is_no_shard(text: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Shard.parse(text, environment)
    assert str(caught.value).startswith(message)


def test_its_name_and_text() -> None:
    assert Shard(3, 100).name == "00003-of-00100"
    assert str(Shard(3, 100)) == "3/100"
