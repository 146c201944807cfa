"""GeN (generalized Newton's method) for JAX: the learning rate of any optax optimizer, measured while it trains."""

from gen_optax._algorithm_1 import Algorithm1 as algorithm_1
from gen_optax._alias import gen_adam as gen_adam
from gen_optax._alias import gen_adamw as gen_adamw
from gen_optax._alias import gen_lion as gen_lion
from gen_optax._alias import gen_sgd as gen_sgd
from gen_optax._average import averaged_params as averaged_params
from gen_optax._balance import Balance as balance
from gen_optax._controller import Controller as Controller
from gen_optax._direction import Step as Step
from gen_optax._fit import QuadraticFit as QuadraticFit
from gen_optax._fit import fit_quadratic as fit_quadratic
from gen_optax._gen import GenInfo as GenInfo
from gen_optax._gen import GenState as GenState
from gen_optax._gen import gen as gen
from gen_optax._gen import scale_by_gen as scale_by_gen
from gen_optax._loss import directional_derivatives as directional_derivatives
from gen_optax._loss import probe_losses as probe_losses
from gen_optax._loss_context import loss_context as loss_context
from gen_optax._masks import unmasked_value_fn as unmasked_value_fn
from gen_optax._measurement import Context as Context
from gen_optax._measurement import Measurement as Measurement
from gen_optax._measurement import ProbeStatus as ProbeStatus
from gen_optax._metrics import metrics as metrics
from gen_optax._microbatch import mean_value_and_grad as mean_value_and_grad
from gen_optax._microbatch import mean_value_fn as mean_value_fn
from gen_optax._notice import Notice as Notice
from gen_optax._path import Path as Path
from gen_optax._probe import Probe as Probe
from gen_optax._probe import exact as exact
from gen_optax._probe import finite_difference as finite_difference
from gen_optax._probe import retrospective as retrospective
from gen_optax._report import Report as Report
from gen_optax._report import report as report

__version__ = "0.1.0"

__all__ = [
    "Context",
    "Controller",
    "GenInfo",
    "GenState",
    "Measurement",
    "Notice",
    "Path",
    "Probe",
    "ProbeStatus",
    "QuadraticFit",
    "Report",
    "Step",
    "algorithm_1",
    "averaged_params",
    "balance",
    "directional_derivatives",
    "exact",
    "finite_difference",
    "fit_quadratic",
    "gen",
    "gen_adam",
    "gen_adamw",
    "gen_lion",
    "gen_sgd",
    "loss_context",
    "mean_value_and_grad",
    "mean_value_fn",
    "metrics",
    "probe_losses",
    "report",
    "retrospective",
    "scale_by_gen",
    "unmasked_value_fn",
]
