"""The group level from files: tables with dictionaries, models on the page, figures, maps."""

from __future__ import annotations

import errno
import html
import json
import re
import tempfile

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bidsapp.labels import TEMPLATE
from bidsapp.report import assemble
from bidsapp.report.assemble import FormulaError, Options
from bidsapp.report.group_models import p_text


def tables_of(folder):
    return {path.name: pd.read_csv(path, sep="\t") for path in sorted(folder.glob("group_*.tsv"))}


@pytest.fixture
def cohort(tmp_path, write_session, rng):
    """24 subjects, 12 patients with 60 ml less gray matter; two sites; one subject has no lesion."""
    rows = ["participant_id\tage\tsex\tgroup\tscanner"]
    for i in range(24):
        patient = i % 2 == 1
        age = 20 + 1.5 * i
        gm = 600_000 - 1000 * age - 60_000 * patient + 5_000 * rng.normal() + (8_000 if i < 12 else 0)
        load = 0 if i == 0 else round(float(np.exp(8 + patient + rng.normal())))
        volumes = {"tiv_mm3": str(1_500_000 + 10_000 * rng.normal()), "gm_mm3": str(gm),
                   "wm_mm3": str(0.7 * gm + rng.normal()),
                   "lesion_mm3": str(load), "lesion_count": str(i)}  # fmt: skip
        write_session(f"{i:02}", volumes=volumes, lesions=i % 5)
        rows.append(f"sub-{i:02}\t{age}\t{'FM'[i // 6 % 2]}\t{'MS' if patient else 'HC'}\t{'ab'[i // 12]}")
    bids = tmp_path / "bids"
    (bids / "phenotype").mkdir(parents=True)
    (bids / "participants.tsv").write_text("\n".join(rows) + "\n")
    (bids / "participants.json").write_text(json.dumps({"age": {"Description": "Age at scan.", "Units": "year"}}))
    (bids / "phenotype" / "edss.tsv").write_text("participant_id\tedss\nsub-01\t2.5\n")
    return bids


def run(tmp_path, cohort, **options):
    page = assemble.assemble_group(tmp_path, bids_dir=cohort, options=Options(**options), say=lambda _: None)
    return page.read_text(), tables_of(tmp_path)


def test_tables_have_covariates_and_dictionaries(tmp_path, cohort):
    _, tables = run(tmp_path, cohort, maps=False)
    assert set(tables) == {
        "group_volumes.tsv", "group_lesions.tsv", "group_single_lesions.tsv", "group_models.tsv", "group_checks.tsv",
        "group_comparisons.tsv", "group_zscores.tsv", "group_qc.tsv",
    }  # fmt: skip
    for name, table in tables.items():
        about = json.loads((tmp_path / name).with_suffix(".json").read_text())
        assert list(about) == list(table.columns)
        assert [column for column in about if not about[column].get("Description")] == [], name
    volumes = tables["group_volumes.tsv"]
    assert list(volumes.columns[-6:]) == ["age", "sex", "group", "scanner", "edss", "contrasts"]
    assert volumes["edss"].notna().sum() == 1 and volumes["age"][3] == 24.5
    assert json.loads((tmp_path / "group_volumes.json").read_text())["age"]["Units"] == "year"


def test_lesion_tables(tmp_path, cohort):
    _, tables = run(tmp_path, cohort, maps=False)
    lesions, single = tables["group_lesions.tsv"], tables["group_single_lesions.tsv"]
    assert len(lesions) == 24 and len(single) == sum(i % 5 for i in range(24))
    assert (single["participant_id"] == "sub-03").sum() == 3
    assert lesions["lesion_largest_mm3"].isna().sum() == 5  # every fifth subject has an empty table
    assert lesions["lesion_largest_mm3"].max() == single["volume_mm3"].max()


def test_default_models_find_the_effect_in_ml(tmp_path, cohort):
    page, tables = run(tmp_path, cohort, maps=False)
    terms = tables["group_models.tsv"]
    gm = terms[(terms["outcome"] == "gm") & (terms["term"] == "group = MS")].iloc[0]
    assert gm["formula"].startswith("gm ~ group + age + sex") and gm["unit"] == "ml" and gm["subjects"] == 24
    assert gm["ci_low"] < -60 < gm["ci_high"] and gm["q_fdr"] < 0.001 and gm["effect"] == "Cohen's d"
    assert "Gray matter" in page and "group = MS" in page and "scanner" not in gm["formula"].split("~")[0]
    (row,) = re.findall(r"<th scope=.row.>Gray matter</th><td>group = MS</td>.*?</tr>", page)
    places = [float(value) for value in re.findall(r'data-value="(.*?)"', row)]
    assert places == pytest.approx(list(gm[["estimate", "p", "q_fdr", "effect_size"]].astype(float)), 1e-4)
    assert f'<span class="soft">{html.escape(p_text(gm["p_robust"]))}</span>' in row
    checks = tables["group_checks.tsv"]
    refused = checks[(checks["part"] == "any lesion") & (checks["check"] == "not fitted")]
    assert "1 of 24 sessions are without lesions" in refused["finding"].iloc[0]
    assert page.count('class="refused">') == checks.loc[checks["check"] == "not fitted", "finding"].nunique()
    assert "Shapiro-Wilk" in page and "1 of 24 sessions are without lesions" in page
    assert "over all outcomes of the same term and right-hand side" in page  # what q is taken over
    assert "measures of sessions and of changes between them are taken apart" in page


def test_asked_models_and_wrong_ones(tmp_path, cohort):
    _, tables = run(tmp_path, cohort, maps=False, models=("gm, wm ~ age", "log(gm) ~ group"))
    terms = tables["group_models.tsv"]
    assert list(dict.fromkeys(terms["formula"])) == ["gm ~ age", "wm ~ age", "log(gm) ~ group"]
    assert set(terms.loc[terms["formula"] == "log(gm) ~ group", "unit"].fillna("")) == {""}
    page, tables = run(tmp_path, cohort, maps=False, models=("gm ~ bs(age, df=2)", "wm ~ age"))
    checks = tables["group_checks.tsv"].set_index("formula")
    assert "df=2 is too small" in checks.loc["gm ~ bs(age,df=2)", "finding"]
    assert set(tables["group_models.tsv"]["formula"]) == {"wm ~ age"} and "df=2 is too small" in page
    with pytest.raises(FormulaError, match="no column 'hippo'"):
        run(tmp_path, cohort, maps=False, models=("hippo ~ age",))


def test_harmonised_and_raw_tables_are_apart(tmp_path, cohort):
    _, before = run(tmp_path, cohort, maps=False)
    page, tables = run(tmp_path, cohort, maps=False, harmonize="scanner", models=("gm ~ group",))
    raw, done = tables["group_volumes.tsv"], tables["group_volumes_harmonized.tsv"]
    pd.testing.assert_frame_equal(raw, before["group_volumes.tsv"])
    assert not np.allclose(raw["gm_mm3"], done["gm_mm3"]) and (raw["lesion_mm3"] == done["lesion_mm3"]).all()
    assert "ComBat" in json.loads((tmp_path / "group_volumes_harmonized.json").read_text())["gm_mm3"]["Description"]
    assert "do not have scanner among their predictors" in page
    page, tables = run(tmp_path, cohort, maps=False, harmonize="scanner")
    assert all("+ scanner" in text for text in tables["group_models.tsv"]["formula"])  # lesions, and harmonised volumes
    assert "do not have scanner among" not in page
    assert "harmonised across" in page and set(tables["group_harmonization.tsv"]["site"]) == {"a", "b"}
    page, tables = run(tmp_path, cohort, maps=False, harmonize="sex_at_birth")
    assert "was not harmonised: there is no column" in page and "group_volumes_harmonized.tsv" not in tables


def test_changes_of_subjects_become_one_table(tmp_path, cohort):
    for subject in ("00", "01"):
        path = tmp_path / f"sub-{subject}" / "anat" / f"sub-{subject}_changes.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"participant_id\tsession_from\tchange\tvolume_mm3\nsub-{subject}\tses-1\tnew\t12.5\n")
        path.with_suffix(".json").write_text('{"change": {"Description": "What became of it."}}')
        path.with_name(f"sub-{subject}_desc-changes_provenance.json").touch()
    broken, stopped = (tmp_path / f"sub-{subject}/anat/sub-{subject}_changes.tsv" for subject in ("02", "03"))
    for path in (broken, stopped):
        path.parent.mkdir(exist_ok=True)
    broken.write_bytes(b"\xff\xfe")
    broken.with_name("sub-02_desc-changes_provenance.json").touch()
    stopped.write_text("participant_id\tvolume_mm3\nsub-03\t7\n")  # no record
    page, tables = run(tmp_path, cohort, maps=False)
    changes = tables["group_changes.tsv"]
    assert changes["participant_id"].to_list() == ["sub-00", "sub-01"]
    assert changes["volume_mm3"].to_list() == [12.5, 12.5]
    assert json.loads((tmp_path / "group_changes.json").read_text())["change"]["Description"] == "What became of it."
    assert "sub-02/anat/sub-02_changes.tsv: is not text" in page


def test_without_participants_there_are_no_models_and_it_says_so(tmp_path, cohort):
    page = assemble.assemble_group(tmp_path, bids_dir=tmp_path / "nowhere", options=Options(maps=False)).read_text()
    assert "No model was fitted" in page and "There is no participants.tsv" in page
    assert not (tmp_path / "group_models.tsv").exists()


def test_maps_and_figures(tmp_path, cohort):
    rng = np.random.default_rng(1)
    for i in range(24):
        mask = (rng.random((20, 24, 22)) < 0.1).astype(np.uint8)
        mask[3, 4, 5] = i % 2
        start = tmp_path / f"sub-{i:02}" / "anat" / f"sub-{i:02}_space-{TEMPLATE}"
        nib.save(nib.Nifti1Image(mask, np.eye(4)), f"{start}_label-lesion_mask.nii.gz")
        if i < 4:
            nib.save(nib.Nifti1Image(mask.astype(np.float32), np.eye(4)), f"{start}_label-GM_probseg.nii.gz")
        gm = 0.5 + 0.05 * np.random.default_rng(i).random((20, 24, 22))
        gm[12:, 12:, 12:] -= 0.2 * (i % 2)  # patients have less in one corner
        nib.save(nib.Nifti1Image(gm.astype(np.float32), np.eye(4)), f"{start}_label-GM_desc-modulated_probseg.nii.gz")
    page, _ = run(tmp_path, cohort, permutations=100)
    about = json.loads((tmp_path / "group_maps" / "group_maps.json").read_text())
    frequency, gm, difference, logp, t, gm_logp = (
        f"group_space-{TEMPLATE}_label-{label}_map.nii.gz"
        for label in ("lesion_desc-frequency", "GM_desc-mean", "lesion_desc-difference", "lesion_desc-logp",
                      "GM_desc-t", "GM_desc-tlogp")
    )  # fmt: skip
    assert set(about) == {frequency, gm, difference, logp, t, gm_logp} and about[gm]["Subjects"] == 4
    assert about[t]["Subjects"] == 24 and about[t]["MlBelow0.05"] > 0
    assert np.asarray(nib.load(tmp_path / "group_maps" / t).dataobj)[16, 16, 16] < -5
    assert "Gray matter: MS minus HC" in page and "Voxel-based morphometry of 24 subjects" in page
    shares = np.asarray(nib.load(tmp_path / "group_maps" / frequency).dataobj)
    assert shares[3, 4, 5] == pytest.approx(0.5) and shares.max() <= 1
    assert np.asarray(nib.load(tmp_path / "group_maps" / difference).dataobj)[3, 4, 5] == 1
    assert about[logp]["VoxelsBelow0.05"] == 1 and "1 of" in page
    captions = re.findall(r"<figcaption><p>(.*?)</p>", page)
    outlined = [text for text in captions if "at 0.05 (outlined in green)." in text]
    assert len(outlined) == 2 and all(text.endswith("Left is left.") for text in outlined)
    effects = (tmp_path / "group_figures" / "group_effects.svg").read_text()
    assert "Gray matter" in effects and ">gm<" not in effects
    for stem in (
        "distributions",
        "age",
        "effects",
        "lesion_frequency",
        "lesion_difference",
        "tissue_means",
        "gray_matter",
    ):
        for kind in ("svg", "png"):
            assert (tmp_path / "group_figures" / f"group_{stem}.{kind}").stat().st_size > 1000
    # The page is one file: its pictures are in it.
    sources = re.findall(r'<img src="([^"]*)"', page)
    assert len(sources) == 7 and all(source.startswith("data:image/png;base64,") for source in sources)
    first = {path.name: path.read_bytes() for path in (tmp_path / "group_figures").iterdir()}
    run(tmp_path, cohort, permutations=100, processes=2)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "group_figures").iterdir()}


@pytest.mark.parametrize("of", ["maps", "morphometry"])
def test_a_full_temporary_folder_costs_its_test_alone(tmp_path, cohort, monkeypatch, of):
    write_gray_matter(tmp_path, 24, lambda i: 0.2 * (i % 2))
    for i in range(24):
        mask = np.zeros((20, 24, 22), np.uint8)
        mask[3, 4, 5] = i % 2
        start = tmp_path / f"sub-{i:02}" / "anat" / f"sub-{i:02}_space-{TEMPLATE}"
        nib.save(nib.Nifti1Image(mask, np.eye(4)), f"{start}_label-lesion_mask.nii.gz")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    store, words = {
        "maps": ("bidsapp.measure.maps._store", "Lesion frequency was not compared"),
        "morphometry": ("bidsapp.measure.morphometry._store_smoothed", "Gray matter was not tested"),
    }[of]
    monkeypatch.setattr(store, full)
    page, _ = run(tmp_path, cohort, permutations=20)
    assert words in page and f"temporary folder {tempfile.gettempdir()} could not hold" in page
    assert (tmp_path / "group_figures/group_gray_matter.png").exists() == (of == "maps")


def test_lesion_frequency_knows_of_sites(tmp_path, cohort):
    """Lesions are seen at one site only, where most patients were scanned: the disease does nothing."""
    rng = np.random.default_rng(1)
    ill = [(i >= 12) != (i in (3, 15)) for i in range(24)]
    for i in range(24):
        mask = (rng.random((20, 24, 22)) < 0.1).astype(np.uint8)
        mask[3, 4, 5] = i >= 12
        start = tmp_path / f"sub-{i:02}" / "anat" / f"sub-{i:02}_space-{TEMPLATE}"
        nib.save(nib.Nifti1Image(mask, np.eye(4)), f"{start}_label-lesion_mask.nii.gz")
    people = pd.read_csv(cohort / "participants.tsv", sep="\t").drop(columns=["age", "sex"])
    people["group"] = ["MS" if one else "HC" for one in ill]
    people.loc[0, "scanner"] = np.nan
    for known, adjusted in ((True, ["scanner"]), (False, [])):
        kept = people if known else people.drop(columns="scanner")
        kept.to_csv(cohort / "participants.tsv", sep="\t", index=False, na_rep="n/a")
        page, _ = run(tmp_path, cohort, permutations=100)
        assert known == ("1 of 24 subjects are left out of the comparison of groups for want of scanner" in page)
        about = json.loads((tmp_path / "group_maps" / "group_maps.json").read_text())
        difference = next(text for name, text in about.items() if "desc-difference" in name)
        assert difference["AdjustedFor"] == adjusted and difference["VoxelsBelow0.05"] == (0 if known else 1)


def write_gray_matter(tmp_path, subjects, loss):
    """Modulated maps of 24 subjects' first `subjects`, with `loss(i)` less in one corner."""
    for i in range(subjects):
        gm = 0.5 + 0.05 * np.random.default_rng(i).random((20, 24, 22))
        gm[12:, 12:, 12:] -= loss(i)
        start = tmp_path / f"sub-{i:02}" / "anat" / f"sub-{i:02}_space-{TEMPLATE}"
        nib.save(nib.Nifti1Image(gm.astype(np.float32), np.eye(4)), f"{start}_label-GM_desc-modulated_probseg.nii.gz")


def about_t(tmp_path):
    about = json.loads((tmp_path / "group_maps" / "group_maps.json").read_text())
    return next(text for name, text in about.items() if "GM_desc-t_" in name)


def test_gray_matter_with_nothing_to_adjust_for(tmp_path, cohort):
    write_gray_matter(tmp_path, 24, lambda i: 0.2 * (i % 2))
    people = pd.read_csv(cohort / "participants.tsv", sep="\t")
    people[["participant_id", "group"]].to_csv(cohort / "participants.tsv", sep="\t", index=False)
    page, _ = run(tmp_path, cohort, permutations=60)
    assert about_t(tmp_path)["AdjustedFor"] == ["tiv"] and "ml are significant" in page


def test_gray_matter_and_age_know_of_three_groups(tmp_path, cohort):
    """The old are ill and the ill lose: age itself does nothing."""
    write_gray_matter(tmp_path, 24, lambda i: 0.1 * (i // 8))
    people = pd.read_csv(cohort / "participants.tsv", sep="\t")
    people["group"] = [["HC", "MCI", "AD"][i // 8] for i in range(24)]
    people.drop(columns=["scanner", "sex"]).to_csv(cohort / "participants.tsv", sep="\t", index=False)
    page, _ = run(tmp_path, cohort, permutations=60)
    assert about_t(tmp_path)["AdjustedFor"] == ["group", "tiv"] and about_t(tmp_path)["MlBelow0.05"] == 0
    assert "Gray matter was tested with age: group has 3 levels" in page and "no voxel is significant" in page


def test_subjects_that_morphometry_leaves_out_are_told(tmp_path, cohort):
    write_gray_matter(tmp_path, 22, lambda i: 0.2 * (i % 2))
    people = pd.read_csv(cohort / "participants.tsv", sep="\t")
    people["scanner"] = ["c"] * 3 + people["scanner"].to_list()[3:]  # the first level has no known age
    people["age"] = people["age"].astype(object)
    people.loc[:2, "age"] = "n/a"
    people.to_csv(cohort / "participants.tsv", sep="\t", index=False)
    page, _ = run(tmp_path, cohort, permutations=60)
    assert about_t(tmp_path)["Subjects"] == 19
    assert "2 of 24 subjects have no map of modulated gray matter" in page
    assert "3 of 22 subjects are left out for want of age" in page


def test_dollars_in_the_name_of_a_group_are_text(tmp_path, cohort):
    people = cohort / "participants.tsv"
    people.write_text(people.read_text().replace("\tMS\t", "\tMS$x_$\t"))
    run(tmp_path, cohort, maps=False)
    drawing = (tmp_path / "group_figures" / "group_distributions.svg").read_text()
    assert ">MS$x_$</text>" in drawing


def test_changes_between_sessions_are_modelled_too(tmp_path, cohort, rng):
    for i in range(24):
        path = tmp_path / f"sub-{i:02}" / "anat" / f"sub-{i:02}_changes.tsv"
        loss, new = -0.3 - 1.2 * (i % 2) + 0.1 * rng.normal(), i % 3
        path.write_text(
            "participant_id\tsession_from\tsession_to\tyears\tnew_count\tnew_mm3\tbrain_change_percent_per_year\n"
            f"sub-{i:02}\tses-1\tses-2\t1.5\t{new}\t{50 * new}\t{loss}\n"
        )
        path.with_suffix(".json").write_text('{"brain_change_percent_per_year": {"LongName": "Shrinking brain"}}')
        path.with_name(f"sub-{i:02}_desc-changes_provenance.json").touch()
    page, tables = run(tmp_path, cohort, maps=False)
    terms = tables["group_models.tsv"].set_index("outcome")
    brain = terms.loc["brain_change_percent_per_year"].set_index("term").loc["group = MS"]
    assert brain["estimate"] == pytest.approx(-1.2, abs=0.15) and brain["unit"] == "%/year" and brain["q_fdr"] < 0.001
    assert {"rate ratio"} == set(terms.loc["new_count", "estimate_kind"])
    assert {"any lesion", "load"} == set(terms.loc["new", "part"])
    assert "Shrinking brain" in page and 'href="./sub-01.html#ses-2"' in page
    compared = tables["group_comparisons.tsv"].set_index("column")
    assert compared.loc["brain_change_percent_per_year", "p_rank"] < 0.001
    path.write_text(path.read_text().replace("\t1.5\t", "\t3\t"))  # now the intervals differ
    _, differ = run(tmp_path, cohort, maps=False)
    right = differ["group_models.tsv"].set_index("outcome")["formula"].str.endswith("+ years").groupby(level=0).all()
    assert right["new_count"] and not right["brain_change_percent_per_year"]
    path.write_text(path.read_text().replace("\t3\t", "\t1.5\t"))
    _, tables = run(tmp_path, cohort, maps=False, models=("new_count ~ group + years",))
    assert "the same" in tables["group_checks.tsv"]["finding"][0]  # years


def test_loads_by_region_are_in_the_table_and_may_be_modelled(tmp_path, cohort):
    for i in range(1, 24):
        path = tmp_path / f"sub-{i:02}" / "anat" / f"sub-{i:02}_load.tsv"
        path.write_text(
            "participant_id\tlesion_count\tperiventricular_mm3\tinfratentorial_count\n"
            f"sub-{i:02}\t{i}\t{1000 * (1 + i % 2) * (1 + i % 3)}\t{i % 4}\n"
        )
        path.with_suffix(".json").write_text('{"periventricular_mm3": {"Description": "Beside the ventricles."}}')
    _, tables = run(tmp_path, cohort, maps=False, models=("periventricular, infratentorial_count ~ group",))
    lesions = tables["group_lesions.tsv"].set_index("participant_id")
    assert lesions.loc["sub-05", "periventricular_mm3"] == 6000 and np.isnan(
        lesions.loc["sub-00", "periventricular_mm3"]
    )
    assert list(lesions.columns).count("lesion_count") == 1 and "periventricular_mm3" not in tables["group_volumes.tsv"]
    about = json.loads((tmp_path / "group_lesions.json").read_text())
    assert about["periventricular_mm3"]["Description"] == "Beside the ventricles."
    terms = tables["group_models.tsv"].set_index(["outcome", "term"])
    assert terms.loc[("periventricular", "group = MS"), "estimate"] == pytest.approx(2, rel=0.3)
    assert terms.loc[("infratentorial_count", "group = MS"), "estimate_kind"] == "rate ratio"


def test_covariates_named_as_measures_are_renamed_and_keep_their_dictionary(tmp_path, cohort):
    table = pd.read_csv(cohort / "participants.tsv", sep="\t", dtype=str)
    table.assign(lesion=["yes", "no"] * 12, GM="7").to_csv(cohort / "participants.tsv", sep="\t", index=False)
    about = {"lesion": {"Description": "Seen by eye.", "Levels": {"yes": "yes", "no": "no"}}}
    (cohort / "participants.json").write_text(json.dumps(about))
    page, tables = run(tmp_path, cohort, maps=False)
    volumes = tables["group_volumes.tsv"]
    assert volumes["gm_mm3"].min() > 1e5 and set(volumes["participants_lesion"]) == {"yes", "no"}
    assert set(volumes["participants_GM"]) == {7}
    told = json.loads((tmp_path / "group_volumes.json").read_text())
    assert told["participants_lesion"]["Description"] == "Seen by eye."
    assert "lesion of participants.tsv goes by participants_lesion here" in page
    assert {"gm", "lesion"} <= set(tables["group_models.tsv"]["outcome"])


def test_the_first_session_is_the_first_by_the_dates_of_the_scans(tmp_path, write_session, rng):
    bids = tmp_path / "bids"
    for i in range(12):
        for label, year, gm in (("b", 2022, 500_000), ("a", 2020, 600_000)) if i == 0 else (
            ("post", 2022, 500_000), ("pre", 2020, 600_000),
        ):  # fmt: skip
            write_session(f"{i:02}", label, volumes={"gm_mm3": str(gm + 1000 * rng.normal())}, lesions=0)
            path = bids / f"sub-{i:02}" / f"ses-{label}" / f"sub-{i:02}_ses-{label}_scans.tsv"
            path.parent.mkdir(parents=True)
            date = "n/a" if (i, label) == (0, "a") else f"{year}-01-01T10:00:00"  # sub-00 goes by the labels
            path.write_text(f"filename\tacq_time\nanat/a.nii.gz\tn/a\nanat/b.nii.gz\t{date}\n")
    _, tables = run(tmp_path, bids, maps=False)
    assert tables["group_volumes.tsv"]["session_id"].to_list() == ["ses-a", "ses-b"] + ["ses-pre", "ses-post"] * 11
    assert tables["group_volumes.tsv"]["acq_time"][2] == "2020-01-01T10:00:00"
    change = tables["group_comparisons.tsv"].set_index("column").loc["gm"]
    assert change["difference"] == pytest.approx(-100, abs=2)  # ml, of the eleven whose order is known
    assert "1 subject" in change["comparison"]
    slope = tables["group_models.tsv"].set_index(["outcome", "term"]).loc[("gm", "time"), "estimate"]
    assert slope == pytest.approx(-50, abs=1)  # ml a year


def test_models_of_one_outcome_are_told_apart(tmp_path, cohort):
    models = ("gm ~ group", "gm ~ group + age", "wm ~ group", "log(wm) ~ age")
    page, _ = run(tmp_path, cohort, maps=False, models=models)
    table = page[page.index('id="terms"') : page.index("Assumptions")]
    assert '<code class="soft">gm ~ group</code>' in table and "gm ~ group + age</code>" in table
    assert "log(wm) ~ age</code>" in table


def test_columns_of_lesions_may_be_outcomes(tmp_path, cohort):
    models = ("lesion_median ~ group", "lesion_largest ~ age")
    _, tables = run(tmp_path, cohort, maps=False, models=models)
    terms = tables["group_models.tsv"]
    assert set(terms["outcome"]) == {"lesion_median", "lesion_largest"}


def test_every_group_is_drawn(tmp_path, cohort):
    path = cohort / "participants.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    for number, row in enumerate(rows[1:]):
        row[3] = f"stage{number % 8}"
    path.write_text("\n".join(map("\t".join, rows)) + "\n")
    run(tmp_path, cohort, maps=False)
    drawn = (tmp_path / "group_figures" / "group_distributions.svg").read_text()
    assert all(f"stage{number}" in drawn for number in range(8))
