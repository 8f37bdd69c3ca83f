"""Numbers of the tables as a person reads them: ml instead of mm3, sensible digits, the reason where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NARROW_SPACE = "\u202f"


@dataclass(frozen=True)
class Value:
    """A measured (or not measured) quantity in words.

    Attributes
    ----------
    column, name, about : str
        Column of the table; what it is called here; what the data dictionary says.
    number : float or None
        As in the table; None where not measured.
    text, unit : str
        For the reader: "812.4", "ml"; "n/a" where not measured.
    why : str
        Why it was not measured.
    """

    column: str
    name: str
    about: str
    number: float | None
    text: str
    unit: str
    why: str = ""

    @property
    def with_unit(self) -> str:
        """Such as "812.4 ml", "0.54 %" or "n/a"."""
        return f"{self.text}\u00a0{self.unit}" if self.unit and self.number is not None else self.text


def describe(
    column: str,
    number: float | None,
    *,
    names: Mapping[str, str],
    dictionary: Mapping[str, Mapping[str, Any]],
    why: str = "",
) -> Value:
    """Put a number of a table into words.

    Parameters
    ----------
    column : str
        Its column; ``*_mm3`` is told in ml.
    number : float or None
        None where not measured.
    names : mapping
        Names of `report.yml`; a column that is not there goes by the LongName of its dictionary.
    dictionary : mapping
        Data dictionary of the table (BIDS: LongName, Description, Units).
    why : str
        Reason of ``n/a``.
    """
    about = dictionary.get(column, {})
    long_name = str(about.get("LongName", "")) or column.replace("_", " ")
    name = names.get(column, long_name)
    description = str(about.get("Description", ""))
    if long_name != name and "LongName" in about:
        description = f"{long_name}. {description}"
    units = str(about.get("Units", ""))
    if number is None:
        return Value(column, name, description, None, "n/a", "", why)
    text, unit = amount(column, number, units)
    return Value(column, name, description, number, text, unit)


def amount(column: str, number: float, units: str = "") -> tuple[str, str]:
    """Text and unit of a number; ``*_mm3`` in ml. What rounds to zero has no sign (``z``).

    Examples
    --------
    >>> amount("brain_mm3", 1107043.0)
    ('1107.0', 'ml')
    >>> amount("lesion_load_percent_tiv", 0.54125, "percent")
    ('0.54', '%')
    >>> amount("lesion_change_mm3_per_year", -1234.0), amount("snr_wm", 13.996)
    (('−1.23', 'ml/year'), ('14.0', ''))
    """
    text, unit = _amount(column.removesuffix("_per_year"), number, units.removesuffix("/year"))
    return text.replace("-", "−"), f"{unit}/year" if column.endswith("_per_year") else unit


def _amount(column: str, number: float, units: str) -> tuple[str, str]:
    if column.endswith("_mm3"):
        return millilitres(number), "ml"
    if "percent" in column or units in ("percent", "%"):
        return "<0.01" if 0 < number < 0.005 else f"{number:z.2f}", "%"
    if units == "year":
        return f"{number:z.2f}", "years"
    if column.endswith("_count") or (number == int(number) and abs(number) < 1e6 and not column.endswith("_mm")):
        return f"{number:z.0f}", ""
    if column.endswith("_mm") or units == "mm":
        return f"{number:z.1f}", "mm"
    if column.endswith("_fraction"):
        return f"{number:z.3f}", ""
    return f"{number:#.3g}".rstrip(".") if abs(number) < 100 else f"{number:.1f}", ""


def percent_text(percent: float) -> str:
    r"""A share: one digit after the point, and nothing that is there becomes zero.

    Examples
    --------
    >>> percent_text(12.345), percent_text(0.06), percent_text(0.003), percent_text(0)
    ('12.3\xa0%', '0.06\xa0%', '<0.01\xa0%', '0\xa0%')
    """
    if percent == 0:
        return "0\u00a0%"
    if percent < 0.005:
        return "<0.01\u00a0%"
    return f"{percent:.2f}\u00a0%" if percent < 0.1 else f"{percent:.1f}\u00a0%"


def millilitres(mm3: float) -> str:
    """Volume in ml: a tenth of a ml for brains, finer for lesions.

    Examples
    --------
    >>> millilitres(812_345.6), millilitres(8_227.0), millilitres(41.0), millilitres(0.0)
    ('812.3', '8.23', '0.041', '0')
    """
    ml = mm3 / 1000
    if ml == 0:
        return "0"
    return f"{ml:.1f}" if abs(ml) >= 10 else f"{ml:.2f}" if abs(ml) >= 1 else f"{ml:z.3f}"


def with_sign(number: float) -> str:
    """A change: one digit after the point, a real minus sign, and no sign where that is zero.

    Examples
    --------
    >>> with_sign(2.04), with_sign(-12.3), with_sign(-0.04)
    ('+2.0', '−12.3', '0.0')
    """
    text = f"{number:+.1f}".replace("-", "−")
    return text[1:] if text[1:] == "0.0" else text


def grouped(number: float, digits: int = 0) -> str:
    """A number with narrow spaces between the thousands from 10 000 on."""
    text = f"{number:,.{digits}f}" if abs(number) >= 10_000 else f"{number:.{digits}f}"
    return text.replace(",", NARROW_SPACE)


def file_size(size: float) -> str:
    r"""Bytes in decimal kB or MB.

    Examples
    --------
    >>> file_size(812), file_size(2_340), file_size(3_456_789)
    ('812\xa0B', '2\xa0kB', '3.5\xa0MB')
    """
    if size < 1000:
        return f"{size:.0f}\u00a0B"
    return f"{size / 1e3:.0f}\u00a0kB" if size < 1e6 else f"{size / 1e6:.1f}\u00a0MB"
