"""What a run is computed with."""

from pathlib import Path

from virnuc_async.runs import hardware


def test_the_size_of_the_input_is_known_unless_a_part_of_it_is_not(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"x" * 5)
    two.write_bytes(b"x" * 7)
    assert hardware._input_bytes([str(one), str(two)]) == 12
    assert hardware._input_bytes([str(one), "-"]) is None
    assert hardware._input_bytes([str(one), str(tmp_path / "missing")]) is None
