"""Random slopes and clustered errors against R 4.2.2: lme4 1.1-31, nlme 3.1-162, clubSandwich 0.5.8."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from bidsapp.measure import formula, mixed
from tests.measure.test_statistics import ORTHODONT, fits_of


@pytest.fixture
def unbalanced() -> pd.DataFrame:
    """Orthodont without the rows whose ``(7 child + age) %% 5 == 0``: 86 of 27 children, three or four of each."""
    rows = []
    for sex, text in ORTHODONT.items():
        for child, values in enumerate(np.array(text.split(), float).reshape(-1, 4), start=1):
            rows += [
                {"participant_id": f"sub-{sex}{child:02}", "session_id": f"ses-{age}", "kind": sex, "y": value,
                 "time": age - 8.0}
                for age, value in zip((8, 10, 12, 14), values, strict=True)
                if (7 * child + age) % 5
            ]  # fmt: skip
    frame = formula.model_frame(pd.DataFrame(rows))
    frame["kind"] = frame["kind"].cat.reorder_categories(["M", "F"])
    return frame


def design(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    girl, time = (frame["kind"] == "F").to_numpy(float), frame["time"].to_numpy(float)
    return np.c_[np.ones(len(frame)), time, girl, time * girl], pd.factorize(frame["participant_id"])[0]


def test_slopes_are_those_of_lmer(unbalanced):
    # lmer(distance ~ time * kind + (time | Subject)); nlme::lme(random = ~time | Subject) has the same to 7 digits.
    assert len(unbalanced) == 86
    (fit,) = fits_of("y ~ time * kind", unbalanced)
    found = fit.terms.set_index("term").loc[["Intercept", "time", "kind = F", "time : kind = F"]]
    assert found["estimate"].to_list() == pytest.approx([22.3496733, 0.7898040, -1.3420575, -0.2730854], rel=1e-5)
    assert found["se"].to_list() == pytest.approx([0.57912085, 0.08831898, 0.90891182, 0.13880243], rel=1e-5)
    # Of 27 children, less two coefficients each; in the balanced data Satterthwaite's are 25 too, here 14 to 24.
    assert found["df"].to_list() == [25] * 4
    assert fit.method.endswith("slopes of time by subject")
    assert "standard deviation of 0.165" in fit.summary


def test_variances_of_slopes_are_those_of_lmer(unbalanced):
    x, subject = design(unbalanced)
    y = unbalanced["y"].to_numpy()
    found = mixed.random_slopes(y, x, subject, x[:, 1], ratio=1.0)
    residual = sm.OLS(found.y, found.x).fit().mse_resid
    spread = np.sqrt(np.diag(found.covariance) * residual)
    assert np.sqrt(residual) == pytest.approx(1.16751203, rel=1e-5)
    assert spread == pytest.approx([2.00129178, 0.16454353], rel=1e-4)
    assert found.covariance[0, 1] * residual / spread.prod() == pytest.approx(-0.14476449, rel=1e-3)
    # Another unit and origin of time are the same model.
    years = 2000 + x[:, 1] / 12
    other = mixed.random_slopes(y, np.c_[x[:, 0], years, x[:, 2], x[:, 2] * years], subject, years, ratio=1.0)
    assert other.covariance[1, 1] == pytest.approx(144 * found.covariance[1, 1], rel=1e-3)
    assert other.offset == pytest.approx(found.offset, abs=1e-3)


def test_clustered_errors_are_those_of_clubsandwich(unbalanced):
    # coef_test(lm(distance ~ time * kind), vcov = "CR2", cluster = Subject)
    x, subject = design(unbalanced)
    model = sm.OLS(unbalanced["y"].to_numpy(), x).fit()
    covariance, df = mixed.clustered(x, model.resid, subject)
    errors = [0.564689331, 0.121286773, 0.773244867, 0.164005590]
    assert np.sqrt(np.diag(covariance)) == pytest.approx(errors, rel=1e-8)
    assert df == pytest.approx([13.1056004, 13.9318000, 18.5673267, 19.9555304], rel=1e-8)
    once, df_once = mixed.clustered(x, model.resid, np.arange(len(x)))  # a subject for each row: HC2
    assert np.sqrt(np.diag(once)) == pytest.approx(model.HC2_se) and (df_once > df).all()


def test_clustered_counts_and_odds_are_those_of_clubsandwich(unbalanced):
    # g <- glm(y ~ time + kind, quasipoisson or binomial); w <- sqrt(weights(g, "working")); X <- w * model.matrix(g)
    # z <- w * (resid(g, "working") + predict(g)); coef_test(lm(z ~ 0 + X), vcov = "CR2", cluster = Subject)
    # Of g itself clubSandwich takes another root of the same matrix: errors differ by up to 0.2 %.
    frame = unbalanced.assign(some_count=np.round(unbalanced["y"] - 15), lesion=unbalanced["y"].clip(23.99) - 23.99)
    (counts,) = fits_of("some_count ~ time + kind", frame)
    odds, _ = fits_of("lesion ~ time + kind", frame)
    terms = ["Intercept", "time", "kind = F"]
    for fit, values, errors, df in (
        (counts, [2.01283459, 0.07986580, -0.24659390], [0.0601519839, 0.0093982765, 0.0990274272],
         [20.1733813, 23.8469612, 19.4687216]),
        (odds, [-1.18959418, 0.54448732, -1.69991570], [0.530110342, 0.104258013, 0.772938360],
         [19.2804156, 24.3016922, 21.3665340]),
    ):  # fmt: skip
        found = fit.terms.set_index("term").loc[terms]
        assert np.log(found["estimate"].astype(float)).to_list() == pytest.approx(values, rel=1e-5)
        assert found["se"].to_list() == pytest.approx(errors, rel=1e-5)
        assert found["df"].to_list() == pytest.approx(df, rel=1e-5)


@pytest.mark.parametrize("sessions", [2, 3])
def test_slopes_need_subjects_with_three_sessions(rng, sessions):
    subject, time = np.repeat(np.arange(20), sessions), np.tile(np.arange(sessions, dtype=float), 20)
    frame = formula.model_frame(pd.DataFrame({
        "participant_id": [f"sub-{i:02}" for i in subject], "session_id": [f"ses-{t:.0f}" for t in time],
        "y": rng.normal(size=20)[subject] + rng.normal(size=20)[subject] * time + rng.normal(size=len(time)),
        "time": time, "group": np.where(subject % 2, "patient", "control"),
    }))  # fmt: skip
    (fit,) = fits_of("y ~ group * time", frame)
    assert ("slopes" in fit.method) == (sessions == 3)
    df = fit.terms.set_index("term").loc["group = patient : time", "df"]
    assert df == 18


def test_slopes_that_differ_make_no_false_courses():
    """The course by group under the null, where subjects' slopes differ: 32 % at 5 % without slopes of their own."""
    rng = np.random.default_rng(3)
    subject, time = np.repeat(np.arange(20), 5), np.tile(np.arange(5.0), 20)
    frame = formula.model_frame(pd.DataFrame({
        "participant_id": [f"sub-{i:02}" for i in subject], "session_id": [f"ses-{t:.0f}" for t in time],
        "y": 0.0, "time": time, "group": np.where(subject % 2, "patient", "control"),
    }))  # fmt: skip
    p = []
    for _ in range(60):
        own = 20 * rng.normal(size=20)[subject] + 5 * rng.normal(size=20)[subject] * time
        (fit,) = fits_of("y ~ group * time", frame.assign(y=own + 5 * rng.normal(size=100)))
        row = fit.terms.set_index("term").loc["group = patient : time"]
        p.append((row["p"], row["p_robust"]))
    assert (np.array(p) < 0.05).mean(axis=0) == pytest.approx([0.05, 0.05], abs=0.05)


def test_no_slope_is_no_harm(rng):
    """Where slopes do not differ the fit lies on the boundary, and is that of a random intercept."""
    subject, time = np.repeat(np.arange(40), 4), np.tile(np.arange(4.0), 40)
    x = np.c_[np.ones(160), time]
    y = rng.normal(size=160)
    y -= x @ np.linalg.lstsq(x, y, rcond=None)[0]
    ratio, y_moved, x_moved = mixed.random_intercept(y, x, subject)
    found = mixed.random_slopes(y, x, subject, time, ratio=ratio)
    assert np.isfinite(found.y).all() and found.covariance[1, 1] < 0.2
    assert sm.OLS(found.y, found.x).fit().bse[1] >= 0.95 * sm.OLS(y_moved, x_moved).fit().bse[1]


@pytest.mark.parametrize("spread", [0.0, 8.0])
def test_two_sessions_whose_sessions_go_otherwise_are_doubtful(spread):
    """Two sessions cannot tell slopes, but irregular intervals of subjects whose slopes differ are seen."""
    rng = np.random.default_rng(5)
    subject = np.repeat(np.arange(80), 2)
    time = np.c_[np.zeros(80), np.r_[np.full(60, 0.5), np.full(20, 6.0)]].ravel()
    y = 5 * rng.normal(size=80)[subject] + spread * rng.normal(size=80)[subject] * time + rng.normal(size=160)
    frame = formula.model_frame(pd.DataFrame({
        "participant_id": [f"sub-{i:02}" for i in subject], "session_id": ["ses-1", "ses-2"] * 80, "y": y, "time": time,
    }))  # fmt: skip
    (fit,) = fits_of("y ~ time", frame)
    (check,) = (check for check in fit.checks if check.name == "Sessions go together as modelled")
    assert "slopes" not in fit.method and check.doubtful == (spread > 0)
    assert ("go by the robust p" in check.finding) == check.doubtful
