"""The methods text says what was used, and nothing else."""

from __future__ import annotations

import re

import pytest

from bidsapp.config import BRAIN_EXTRACTIONS, LESION_MODELS, NORMALIZATIONS, TISSUE_MODELS
from bidsapp.report import methods
from bidsapp.report.read import read_subject


@pytest.fixture
def text_of(tmp_path, write_session):
    def text(**record):
        write_session("01", **record)
        return methods.methods_text(read_subject(tmp_path, "01"))

    return text


def test_one_session(text_of):
    plain = text_of().plain
    for cited in ("Tustison et al., 2010", "Fisch et al., 2024", "Van Leemput et al., 1999", "Akkus et al., 2017"):
        assert f"({cited})" in plain
    assert "10.1109/TMI.2010.2046908" in plain
    for absent in ("Nyúl", "Manjón", "Smith", "For sub-01", "[@", "{", "…"):
        assert absent not in plain
    assert "T1w and FLAIR, with the T1w as the reference" in plain


def test_options_change_the_text(text_of):
    plain = text_of(options={"normalization": "nyul", "denoise": True}, methods={"brain_extraction": "bet"}).plain
    for cited in ("Nyúl et al., 2000", "Manjón et al., 2010", "Smith, 2002"):
        assert f"({cited})" in plain
    assert "Fisch et al." not in plain and "z-scores" not in plain


def test_flair_alone(text_of):
    plain = text_of(
        reference="FLAIR", contrasts=["FLAIR"], not_measured={"gm_mm3": "FLAIR alone"},
        methods={"brain_extraction": "template", "tissue_model": "mixture", "lesion_model": "outlier"},
    ).plain  # fmt: skip
    assert "could not be told apart" in plain and "registered to it rigidly" not in plain
    assert "Fisch et al." not in plain


def test_no_lesions(text_of):
    plain = text_of(methods={"lesion_model": "none", "brain_extraction": "deepbet", "tissue_model": "mixture"}).plain
    assert "Lesions were not segmented." in plain and "outliers" not in plain


def test_the_versions_of_the_networks_are_told(text_of):
    networks = {"segment": "0.6.0", "brain": "0.2.0"}
    plain = text_of(methods={"brain_extraction": "network", "networks": networks}).plain
    assert "3D U-Net (segment 0.6.0)" in plain and "small U-Net (brain 0.2.0)" in plain


def test_a_checked_brain_mask(text_of):
    plain = text_of(methods={"brain_extraction": "deepbet", "check_brain": True, "networks": {"brain": "0.2.0"}}).plain
    assert "checked by a small U-Net (brain 0.2.0)" in plain and "Hoopes" in plain


def test_a_network_is_not_said_to_check_itself(text_of):
    about = {"brain_extraction": "network", "check_brain": True, "networks": {"brain": "0.3.0"}}
    plain = text_of(methods=about).plain
    assert "extracted by a small U-Net (brain 0.3.0)" in plain and "checked" not in plain


def test_an_older_record_does_not_tell_them(text_of):
    assert "a small U-Net trained on" in text_of(methods={"brain_extraction": "network"}).plain


OWN = {
    "name": "my <b>model</b> [@nobody2020]", "version": "1.2", "architecture": "TwoPathway", "threshold": 0.35,
    "contrasts": ["T1w", "FLAIR"], "cascade": False, "crf": True, "trained_on": ["12 labelled sessions of 'Our MS'"],
}  # fmt: skip


def test_a_lesion_model_of_ones_own_is_named_with_its_training_data(text_of):
    plain = text_of(methods={"lesion_model": "my-1.2", "own_lesion_model": OWN, "brain_extraction": "deepbet"}).plain
    assert "segmented from T1w and FLAIR by the model my <b>model</b> [ @nobody2020] (version 1.2)" in plain
    assert "trained on 12 labelled sessions of 'Our MS'" in plain and "exceeds 0.35" in plain
    assert "Kamnitsas et al., 2017" in plain and "Krähenbühl" in plain and "Havaei" not in plain
    assert "method “my-1.2”" not in plain and "Lesjak" not in plain


@pytest.mark.parametrize(
    ("about", "cited"), [({"cascade": True}, "Havaei"), ({"architecture": "FoldedUNet"}, "3D U-Net")]
)
def test_its_kind_is_said(text_of, about, cited):
    methods_ = {"lesion_model": "x", "own_lesion_model": OWN | about | {"crf": False, "trained_on": []}}
    plain = text_of(methods=methods_).plain
    assert cited in plain and "Kamnitsas" not in plain and "Krähenbühl" not in plain
    assert "whose card does not name its data" in plain


def test_sessions_that_differ_are_named(tmp_path, write_session):
    write_session("01", "1")
    write_session("01", "2", contrasts=["T1w"])
    plain = methods.methods_text(read_subject(tmp_path, "01")).plain
    assert "For sub-01_ses-1, the other contrasts (FLAIR) were registered" in plain
    assert "For sub-01_ses-2, the only contrast was T1w" in plain
    assert plain.count("corrected within the brain by N4") == 1


def test_a_model_that_no_sentence_knows_is_still_named(text_of):
    assert "method “unet9000”" in text_of(methods={"tissue_model": "unet9000", "brain_extraction": "deepbet"}).plain


def test_every_method_of_the_app_has_a_sentence():
    said = str([sentence.get("when") for sentence in methods._layout()["sentences"]])
    known = {*BRAIN_EXTRACTIONS, *TISSUE_MODELS, *LESION_MODELS, *NORMALIZATIONS} - {"auto", "none"}
    assert [name for name in known if f"'{name}'" not in said] == []


def test_every_citation_has_its_reference_and_every_reference_is_cited():
    layout = methods._layout()
    cited = set(re.findall(r"\[@(\w+)\]", str(layout["sentences"])))
    assert cited == set(layout["references"])
    assert all(re.fullmatch(r"10\.\d{4,9}/\S+", about["doi"]) for about in layout["references"].values())


def test_without_a_record_there_is_no_text(tmp_path):
    assert methods.methods_text(read_subject(tmp_path, "ghost")).paragraphs == ()


def test_network(text_of):
    plain = text_of(
        options={"tta": True}, contrasts=["T1w"], reference="T1w",
        methods={"brain_extraction": "deepbet", "tissue_model": "network", "lesion_model": "network"},
    ).plain  # fmt: skip
    for said in ("Billot et al., 2023", "second opinion", "mirror images", "border was then drawn", "26-connected"):
        assert said in plain
    assert "robust estimates of its parameters" not in plain and "does not explain" not in plain


def test_consensus(text_of):
    plain = text_of(
        options={}, methods={"brain_extraction": "deepbet", "tissue_model": "consensus", "lesion_model": "consensus"}
    ).plain
    cited = ("Thompson et al., 2018", "Lipton et al., 2014")
    for said in (*cited, "posteriors were averaged", "mean exceeds 0.4", "border was then drawn"):
        assert said in plain
    assert "quality control alone" not in plain and "chosen on synthetic scans" not in plain


def test_what_this_session_did_and_no_more(text_of):
    """One scan has no reference beside it, and tissues that were not averaged are not said to be."""
    plain = text_of(
        reference="FLAIR", contrasts=["FLAIR"], qc={"agreement_gm": "n/a", "flags": "none"}, options={},
        methods={"brain_extraction": "template", "tissue_model": "consensus", "lesion_model": "consensus"},
    ).plain  # fmt: skip
    assert "The only contrast was FLAIR" in plain and "with the FLAIR as the reference" not in plain
    assert "was not averaged with them" in plain and "posteriors were averaged" not in plain
    assert "Where the contrasts allow it" not in plain and "Battaglini" not in plain


def test_filled_lesions_are_cited(text_of):
    name = "sub-01/anat/sub-01_space-orig_desc-lesionfilled_T1w.nii.gz"
    assert "(Battaglini et al., 2012)" in text_of(outputs={name: 9}).plain
