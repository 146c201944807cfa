"""GeN (generalized Newton's method) for JAX: the learning rate of any optax optimizer, measured while it trains."""

from gen_optax._alias import gen_adam as gen_adam
from gen_optax._alias import gen_adamw as gen_adamw
from gen_optax._alias import gen_lion as gen_lion
from gen_optax._alias import gen_sgd as gen_sgd
from gen_optax._control import ProbeStatus as ProbeStatus
from gen_optax._fit import QuadraticFit as QuadraticFit
from gen_optax._fit import fit_quadratic as fit_quadratic
from gen_optax._gen import GenInfo as GenInfo
from gen_optax._gen import GenState as GenState
from gen_optax._gen import gen as gen
from gen_optax._gen import scale_by_gen as scale_by_gen
from gen_optax._loss import directional_derivatives as directional_derivatives
from gen_optax._loss import probe_losses as probe_losses
from gen_optax._masks import unmasked_value_fn as unmasked_value_fn
from gen_optax._metrics import metrics as metrics
from gen_optax._microbatch import mean_value_and_grad as mean_value_and_grad
from gen_optax._microbatch import mean_value_fn as mean_value_fn
from gen_optax._probe import exact as exact
from gen_optax._probe import finite_difference as finite_difference
from gen_optax._probe import retrospective as retrospective

__version__ = "0.1.0"
