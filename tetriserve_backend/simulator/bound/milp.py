"""The fluid relaxation as a mixed-integer program, solved by HiGHS."""

from dataclasses import dataclass, field

import highspy
import numpy as np

from tetriserve_backend.domain import ServerError


class BoundError(ServerError):
    """The solver failed at the bound; `bound_time_limit_s: 0` of a sweep does without it."""


@dataclass(slots=True)
class RowWiseModel:
    """A maximisation in rows, built column by column and row by row. Columns are ≥ 0."""

    upper: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    binary: list[int] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def column(self, upper: float) -> int:
        """A continuous column in [0, upper]; returns its index."""
        self.upper.append(upper)
        self.gain.append(0.0)
        return len(self.upper) - 1

    def choice(self, gain: float = 1.0) -> int:
        """A binary column that is worth `gain`; returns its index."""
        index = self.column(1.0)
        self.gain[index] = gain
        self.binary.append(index)
        return index

    def row(self, terms: list[tuple[int, float]], *, lower: float = -highspy.kHighsInf, upper: float) -> None:
        """Demand that Σ value·column lies in [lower, upper]; terms are (column, value)."""
        self.row_lower.append(lower)
        self.row_upper.append(upper)
        for column, value in terms:
            self.columns.append(column)
            self.values.append(value)
        self.starts.append(len(self.columns))


@dataclass(frozen=True, slots=True)
class Solved:
    """How far the solver came: no solution is worth more than `upper`, the best one found is worth `found`."""

    upper: float
    found: float
    optimal: bool


def maximise(model: RowWiseModel, *, time_limit_s: float, gap: float) -> Solved:
    """Solve, with gains that are whole numbers: a gap below one gain is closed by rounding down.

    Args:
        model: what to maximise.
        time_limit_s: seconds after which the best bound so far has to do.
        gap: between bound and best solution, as a share of the solution, at which the solver may stop.

    Raises:
        BoundError: the solver failed otherwise than by running out of time.
    """
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("random_seed", 0)
    solver.setOptionValue("mip_abs_gap", 0.999)
    solver.setOptionValue("mip_rel_gap", gap)
    solver.setOptionValue("time_limit", max(0.01, time_limit_s))
    solver.passModel(_to_highs(model))
    solver.run()
    status = solver.getModelStatus()
    if status not in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kTimeLimit):
        raise BoundError(f"bound: HiGHS ended with {solver.modelStatusToString(status)}")
    info = solver.getInfo()
    trivial = sum(model.gain)
    upper = min(trivial, info.mip_dual_bound) if np.isfinite(info.mip_dual_bound) else trivial
    # The point found may be infeasible or absent when time ran out before the root was solved.
    has_point = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    found = info.objective_function_value if has_point else 0.0
    return Solved(upper, found, status == highspy.HighsModelStatus.kOptimal)


def _to_highs(model: RowWiseModel) -> highspy.HighsLp:
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(model.upper), len(model.row_upper)
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_ = np.array(model.gain)
    lp.col_lower_ = np.zeros(len(model.upper))
    lp.col_upper_ = np.array(model.upper)
    lp.row_lower_ = np.array(model.row_lower)
    lp.row_upper_ = np.array(model.row_upper)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.array(model.starts)
    lp.a_matrix_.index_ = np.array(model.columns)
    lp.a_matrix_.value_ = np.array(model.values)
    kinds = [highspy.HighsVarType.kContinuous] * len(model.upper)
    for index in model.binary:
        kinds[index] = highspy.HighsVarType.kInteger
    lp.integrality_ = kinds
    return lp
