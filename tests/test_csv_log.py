"""CSV logs on a full disk, and with new columns."""

import pytest

from trqam_fast.runs.csv_log import CsvLog


def test_rows_that_the_disk_refuses_are_written_later(tmp_path, monkeypatch):
    log = CsvLog(tmp_path / "a.csv", ("step", "value"))
    log.write([{"step": 1, "value": 2}])
    before = log.path.read_bytes()

    class Full:
        def __init__(self):
            self.file = log.path.open("ab")

        def __enter__(self):
            return self

        def write(self, text):
            self.file.write(text[:3].encode())
            self.file.flush()
            raise OSError(28, "No space left on device")

        def __exit__(self, *_):
            self.file.close()

    def opened(path, mode="r", **options):
        return Full() if mode == "a" else open(path, mode, **options)

    monkeypatch.setattr("trqam_fast.runs.csv_log.open", opened, raising=False)
    with pytest.raises(OSError, match="No space left"):
        log.write([{"step": 2, "value": 3}])
    assert log.path.read_bytes() == before
    monkeypatch.undo()
    log.write([{"step": 3, "value": 4}])
    assert log.path.read_text() == "step,value\n1,2\n2,3\n3,4\n"


def test_a_log_takes_new_columns(tmp_path):
    log = CsvLog(tmp_path / "a.csv", ("step", "late", "early"))
    log.write([{"step": 1, "early": 2}])
    log.write([{"step": 2, "early": 3, "other": 4}, {"step": 3, "late": 5}])
    assert log.path.read_text() == "step,late,early,other\n1,,2,\n2,,3,4\n3,5,,\n"
    log.truncate(2)
    assert log.path.read_text() == "step,late,early,other\n1,,2,\n2,,3,4\n"
