"""The methods text of a report, from what the records say was used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bidsapp.labels import WITH_AGENT
from bidsapp.report.read import Session
from bidsapp.words import enumerate_words

CITATION = re.compile(r"\[@(\w+)\]")
#: Methods of the record that each need a sentence, and their topics.
MODELS = {"brain_extraction": "Brain extraction", "tissue_model": "Tissue", "lesion_model": "Lesions"}


@dataclass(frozen=True)
class Methods:
    """Text by topic, and the works it cites.

    Attributes
    ----------
    paragraphs : tuple of (topic, text)
    references : tuple of (text, doi)
        In alphabetical order.
    """

    paragraphs: tuple[tuple[str, str], ...]
    references: tuple[tuple[str, str], ...]

    @property
    def plain(self) -> str:
        """All of it, to paste into a manuscript."""
        text = "\n\n".join(text for _, text in self.paragraphs)
        return text + "\n\nReferences\n\n" + "\n".join(f"{full} doi:{doi}" for full, doi in self.references)


@cache
def _layout() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "methods.yml").read_text(encoding="utf-8"))


def methods_text(sessions: Sequence[Session], compared: Mapping[str, str] | None = None) -> Methods:
    """Tell what was done in the sessions that have a record; where they differ, for which.

    Parameters
    ----------
    sessions : sequence of Session
        Those without a record are left out.
    compared : mapping, optional
        From `changes.compared_facts`, where the sessions were compared with each other.
    """
    facts = {session.name: session_facts(session) | dict(compared or {}) for session in sessions if session.record}
    if not facts:
        return Methods((), ())
    # Equal sentences are said once, in the order of the file.
    said: dict[tuple[str, str], list[str]] = {}
    for sentence in _layout()["sentences"]:
        for name, about in facts.items():
            if _holds(sentence.get("when", {}), about):
                text = sentence["text"].strip().format_map(_Words(about))
                said.setdefault((sentence["topic"], text), []).append(name)
    for name, about in facts.items():
        for topic, text in _unknown_models(about):
            said.setdefault((topic, text), []).append(name)
    return _compose(said, list(facts), _layout()["references"])


def compose(layout: Mapping[str, Any], facts: Mapping[str, Any]) -> Methods:
    """Methods text of something else than sessions.

    Parameters
    ----------
    layout : mapping
        ``sentences`` and ``references``, as in `methods.yml`, whose references can be cited as well.
    facts : mapping
        What its sentences ask about.
    """
    said: dict[tuple[str, str], list[str]] = {}
    for sentence in layout["sentences"]:
        if _holds(sentence.get("when", {}), facts):
            said[sentence["topic"], sentence["text"].strip().format_map(_Words(facts))] = [""]
    return _compose(said, [""], _layout()["references"] | layout["references"])


def session_facts(session: Session) -> dict[str, Any]:
    """What the sentences of `methods.yml` ask about a session."""
    record = session.record
    contrasts = record["contrasts"]
    reference = str(record.get("reference") or (contrasts[0] if contrasts else "scan"))
    others = [contrast for contrast in contrasts if contrast != reference]
    methods = record["options"] | record["methods"]
    lesions = methods.get("lesion_model", "none") != "none"
    if methods.get("own_lesion_model"):
        methods |= {"lesion_model": "own"} | _own_model_facts(methods["own_lesion_model"])
    return methods | {
        "version": record.get("version", ""),
        "segment": _network(methods, "segment"),
        "brain": _network(methods, "brain"),
        "contrasts": enumerate_words(contrasts),
        "reference": reference,
        "others": enumerate_words(others),
        "coregistered": "yes" if others else "no",
        "lesions": "yes" if lesions else "no",
        "cortex": "yes" if "cortex" in session.tables else "no",
        # The two models' agreement on gray matter is measured where both know it, and only there they are averaged.
        "averaged": "no" if session.checks.get("agreement_gm") == "n/a" else "yes",
        "filled": "yes" if any("_desc-lesionfilled_" in str(path) for path in record["outputs"]) else "no",
        "separable": "no" if "gm_mm3" in record["not_measured"] else "yes",
    }


def _network(methods: Mapping[str, Any], name: str) -> str:
    """A packaged network with its version, in brackets; nothing where the record, an older one, does not tell."""
    networks = methods.get("networks")
    version = networks.get(name) if isinstance(networks, dict) else None
    return _plain(f" ({name} {version})") if version else ""


def _own_model_facts(about: Mapping[str, Any]) -> dict[str, Any]:
    """Words for a lesion model that somebody trained, from what its card says."""
    trained_on = [_plain(text) for text in about.get("trained_on", [])]
    kind = "cascade" if about.get("cascade") else str(about.get("architecture"))
    return {
        "own_kind": kind if kind in ("cascade", "FoldedUNet", "TwoPathway") else "other",
        "own_crf": "yes" if about.get("crf") else "no",
        "own_model": _plain(f"{about.get('name')} (version {about.get('version')})"),
        "own_contrasts": enumerate_words(
            ["T1w with contrast agent" if name == WITH_AGENT else str(name) for name in about.get("contrasts", [])]
        ),
        "own_threshold": about.get("threshold"),
        "own_data": f"trained on {enumerate_words(trained_on)}" if trained_on else "whose card does not name its data",
    }


def _plain(text: str) -> str:
    """What somebody wrote into a card cites nothing here."""
    return text.replace("[@", "[ @")


def _holds(when: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return all(facts.get(key) in (value if isinstance(value, list) else [value]) for key, value in when.items())


def _unknown_models(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A word on models that no sentence knows: nothing that was used goes unmentioned."""
    known: dict[str, set[Any]] = {key: {"none", "auto", None} for key in MODELS}
    for sentence in _layout()["sentences"]:
        for key in MODELS.keys() & sentence.get("when", {}).keys():
            value = sentence["when"][key]
            known[key].update(value if isinstance(value, list) else [value])
    return [
        (topic, _layout()["unknown"].format(topic=topic.lower(), value=facts[key]))
        for key, topic in MODELS.items()
        if key in facts and facts[key] not in known[key]
    ]


def _compose(
    said: Mapping[tuple[str, str], list[str]], everywhere: list[str], references: Mapping[str, Any]
) -> Methods:
    cited: set[str] = set()

    def cite(match: re.Match[str]) -> str:
        cited.add(match[1])
        return f"({references[match[1]]['short']})"

    topics: dict[str, list[str]] = {}
    for (topic, text), names in said.items():
        text = CITATION.sub(cite, " ".join(text.split()))
        start = "" if len(names) == len(everywhere) else f"for {enumerate_words(names)}, "
        text = start + text
        topics.setdefault(topic, []).append(text[:1].upper() + text[1:])
    return Methods(
        tuple((topic, " ".join(texts)) for topic, texts in topics.items()),
        tuple((references[key]["full"], references[key]["doi"]) for key in sorted(cited)),
    )


class _Words(dict[str, Any]):
    """Facts for `str.format_map`; a missing one is left out."""

    def __missing__(self, key: str) -> str:
        return "…"
