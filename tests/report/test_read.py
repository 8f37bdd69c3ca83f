"""Reading what is on disk: missing and broken files are told, never raised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bidsapp.report import read


def note_problem(out_dir: Path, name: str, status: str, message: str) -> None:
    (out_dir / "logs").mkdir(exist_ok=True)
    subject, _, session = name.removeprefix("sub-").partition("_ses-")
    content = {"subject": subject, "session": session or None, "status": status, "message": message}
    (out_dir / "logs" / f"{name}_problem.json").write_text(json.dumps(content))


def test_a_whole_session(tmp_path, write_session):
    write_session("01", "1")
    (session,) = read.read_subject(tmp_path, "01")
    assert (session.subject, session.session, session.name, session.status) == ("01", "1", "sub-01_ses-1", "done")
    assert session.row["gm_mm3"] == "600000" and session.checks["flags"] == "none"
    assert len(session.tables["lesions"]) == 25
    assert session.dictionaries["volumes"]["gm_mm3"]["Description"] == "What gm_mm3 is."
    picture = session.pictures["brain_overlay"]
    assert (picture.path, picture.width, picture.height) == (
        "sub-01/figures/sub-01_ses-1_desc-brain_overlay.png", 1, 1,
    )  # fmt: skip
    assert session.broken == ()


def test_sessions_of_one_subject_only(tmp_path, write_session):
    for subject, session in (("1", None), ("10", None), ("2", "b"), ("2", "a")):
        write_session(subject, session)
    assert [session.name for session in read.read_subject(tmp_path, "1")] == ["sub-1"]
    assert [session.name for session in read.read_subject(tmp_path, "2")] == ["sub-2_ses-a", "sub-2_ses-b"]
    assert read.subjects(tmp_path) == ["1", "2", "10"]


def test_failed_skipped_and_unfinished(tmp_path, write_session):
    write_session("01", "1")
    note_problem(tmp_path, "sub-01_ses-2", "failed", "the file is truncated")
    note_problem(tmp_path, "sub-02", "skipped", "no T1w, FLAIR or T2w scan")
    (tmp_path / "sub-01" / "ses-3").mkdir()
    (tmp_path / "logs" / "sub-01.log").write_text("\n".join(f"line {number}" for number in range(40)))
    sessions = read.read_subject(tmp_path, "01")
    assert [session.status for session in sessions] == ["done", "failed", "unfinished"]
    assert sessions[1].problem["message"] == "the file is truncated"
    assert sessions[1].log == "logs/sub-01.log"
    assert sessions[1].log_tail.splitlines() == [f"line {number}" for number in range(25, 40)]
    assert sessions[0].log_tail == ""
    assert read.subjects(tmp_path) == ["01", "02"]
    assert read.read_subject(tmp_path, "02")[0].status == "skipped"


def test_a_subject_of_whom_nothing_is_known(tmp_path):
    (session,) = read.read_subject(tmp_path, "ghost")
    assert session.status == "unfinished" and session.record == {} and session.row == {}


@pytest.mark.parametrize(
    ("ending", "content", "said"),
    [
        ("_provenance.json", b"{", "is not JSON"),
        ("_provenance.json", b"[1, 2]", "not a JSON object"),
        ("_volumes.tsv", b"", "is not a table"),
        ("_volumes.tsv", b"\x1f\x8b\x00\xff", "is not text"),
        ("_volumes.tsv", b"a\ta\n1\t2\n", "two columns of one name"),
        ("_volumes.tsv", b"a\tb\n1\t2\t3\t4\n1\n1\t2\t3\t4\t5\n", "is not a table"),
        ("_volumes.tsv", b"a\tb\n1\t2\n1\t2\t3\n", "is not a table (row 3 has 3 cells, the header 2)"),
        ("_volumes.tsv", b"a\t a\n1\t2\n", "two columns of one name"),
        ("_qc.json", b"\xff\xfe", "is not text"),
    ],
)
def test_broken_files_are_named(tmp_path, write_session, ending, content, said):
    folder = write_session("01")
    (folder / f"sub-01{ending}").write_bytes(content)
    (session,) = read.read_subject(tmp_path, "01")
    (told,) = session.broken
    assert told.startswith(f"sub-01/anat/sub-01{ending}: ") and said in told


def test_a_broken_picture_is_named(tmp_path, write_session):
    write_session("01")
    (tmp_path / "sub-01" / "figures" / "sub-01_desc-brain_image.png").write_bytes(b"GIF89a")
    (session,) = read.read_subject(tmp_path, "01")
    assert "brain_image" not in session.pictures and "brain_overlay" in session.pictures
    assert session.broken == ("sub-01/figures/sub-01_desc-brain_image.png: is not a PNG picture",)


def test_a_record_of_another_make_is_made_sound(tmp_path, write_session):
    write_session("01", inputs="none", warnings=[1, None], not_measured=[], contrasts=None, options=3)
    (session,) = read.read_subject(tmp_path, "01")
    assert session.record["inputs"] == [] and session.record["warnings"] == ["1", "None"]
    assert session.record["not_measured"] == {} and session.record["options"] == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.5", 1.5), ("-2e3", -2000.0), ("n/a", None), ("", None), ("inf", None), ("nan", None), (None, None)],
)
def test_number(text, value):
    assert read.number(text) == value


def test_a_table_saved_by_excel_begins_with_a_mark(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_bytes(b"\xef\xbb\xbfparticipant_id\tage\nsub-1\t5\n")
    assert list(read.read_table(path).columns) == ["participant_id", "age"]


@pytest.mark.parametrize(
    "text",
    [
        "participant_id\tage\nsub-1\t5\t\nsub-2\t\t\n",  # a tab at the end of every row
        "participant_id\tage\t\nsub-1\t5\t\nsub-2\t\t\n",
        "participant_id\tage \r\nsub-1\t5\r\n\r\nsub-2\r\n",
        'participant_id\t age\n"sub-1"\t5\t\nsub-2\t""\t\n',
    ],
)
def test_tables_made_by_hand(tmp_path, text):
    path = tmp_path / "participants.tsv"
    path.write_bytes(text.encode())
    assert read.read_table(path).to_dict("list") == {"participant_id": ["sub-1", "sub-2"], "age": ["5", ""]}


def test_quotes_that_are_but_marks_cost_no_table(tmp_path):
    path = tmp_path / "participants.tsv"
    for cell in ('"mild" lesions', '"mild', '6" nail', "long" * 50_000):
        path.write_text(f"participant_id\tcomment\nsub-1\t{cell}\nsub-2\tn/a\n")
        assert read.read_table(path)["comment"].to_list() == [cell, "n/a"]


def test_sessions_go_by_number_or_as_they_were_compared(tmp_path, write_session):
    for session in ("10", "2", "post", "pre"):
        write_session("01", session)

    def order():
        return [session.session for session in read.read_subject(tmp_path, "01")]

    assert order() == ["2", "10", "post", "pre"]
    record = tmp_path / "sub-01" / "anat" / "sub-01_desc-changes_provenance.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"sessions": ["pre", "post", "2", "gone"]}))
    assert order() == ["pre", "10", "post", "2"]  # the one that was not compared keeps its place
    for broken in ("[]", "{", '{"sessions": 3}'):
        record.write_text(broken)
        assert order() == ["2", "10", "post", "pre"]
