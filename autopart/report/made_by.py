"""How times were made, in words."""


def made_by(method: str, calibration: str | None) -> str:
    """`measured`, `analytic`, or `analytic, calibrated with runs.csv (24 steps, …)`."""
    return method if calibration is None else f"{method}, calibrated with {calibration}"
