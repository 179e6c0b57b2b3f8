"""Files are looked at in order, and no more of them than are wanted."""

from edgewatt.workloads.picture_files import looked_at
from support.picture_sets import write_picture


def test_no_more_files_are_looked_at_than_it_takes(tmp_path):
    picture, asked = write_picture(tmp_path / "x.png"), []

    def place(name):
        asked.append(name)
        return picture

    looked = looked_at({k: f"{k}.png" for k in range(1000)}, place, limit=2)
    assert [p.id for p in looked.pictures] == [0, 1] and looked.count == 1000
    assert len(asked) < 100
