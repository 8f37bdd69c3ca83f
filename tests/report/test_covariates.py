"""What is known of the subjects: which file of which folder."""

from __future__ import annotations

from bidsapp.report.covariates import read_covariates


def test_participants_of_the_derivatives_leave_the_other_tables_to_the_dataset(tmp_path):
    bids, out = tmp_path / "bids", tmp_path / "out"
    for folder in (bids / "phenotype", bids / "sub-1" / "ses-1", out / "phenotype"):
        folder.mkdir(parents=True)
    (out / "participants.tsv").write_text("participant_id\tage\nsub-1\t5\n")
    (out / "participants.json").write_text('{"age": {"Units": "year"}}')
    (out / "phenotype" / "old.tsv").write_text("participant_id\tx\nsub-1\t1\n")
    (bids / "phenotype" / "edss.tsv").write_text("participant_id\tedss\nsub-1\t2\n")
    (bids / "sub-1" / "sub-1_sessions.tsv").write_text("session_id\tweight\nses-1\t70\n")
    scans = "filename\tacq_time\nanat/x.nii.gz\t2020-01-01T10:00:00\n"
    (bids / "sub-1" / "ses-1" / "sub-1_ses-1_scans.tsv").write_text(scans)
    found = read_covariates(bids, out)
    assert [name for name, _ in found.tables] == ["participants.tsv", "edss.tsv", "scans.tsv", "sessions.tsv"]
    assert found.dictionary["age"] == {"Units": "year"} and found.notes == ()
    assert [name for name, _ in read_covariates(None, out).tables] == ["participants.tsv", "old.tsv"]


def test_accents_of_another_encoding_cost_no_column(tmp_path):
    text = " participant_id\t age\tgroup \nsub-1\t5\tétude\n"
    (tmp_path / "participants.tsv").write_bytes(text.encode("latin-1"))
    found = read_covariates(tmp_path, tmp_path)
    assert found.tables[0][1].to_dict("records") == [{"participant_id": "sub-1", "age": "5", "group": "étude"}]
    assert found.notes == ("participants.tsv is not in UTF-8, and read as Latin-1: see that its accents are right.",)
