"""What `train.on_policy` adds to a step: the student writes the responses of all rows of a replica at once.

Every prompt is taken to fill what `max_new_tokens` leaves of `data.sequence_length`, every response to be as long as it
may. With `adaptive` the probability is the one that the run begins with, and nothing is drawn from the buffer.
"""

from dataclasses import dataclass

from megaokd.cost.decode import Rates, Responses, generation_time
from megaokd.cost.hardware import Cluster
from megaokd.cost.setting import Setting


@dataclass(frozen=True)
class Writing:
    """Of a step whose responses the student writes."""

    seconds: float
    probability: float
    """Of a step to be one."""

    @property
    def expected(self) -> float:
        """Seconds of a step on average."""
        return self.seconds * self.probability


def writing_time(setting: Setting, cluster: Cluster) -> Writing:
    """Nothing without `train.on_policy`."""
    options, config = setting.config.train.on_policy, setting.config
    if options is None:
        return Writing(0.0, 0.0)
    response = min(options.max_new_tokens, config.data.sequence_length)
    responses = Responses(
        rows=config.train.micro_batch * setting.micro_batches,
        prompt=max(1, config.data.sequence_length + 1 - response),
        response=response,
        tensor=setting.student_tp.size,
        precision=config.train.precision,
    )
    rates = Rates.of_gpu(cluster.gpu, cluster.assumptions, config.train.precision)
    return Writing(generation_time(setting.student, responses, rates).total, options.probability)


def writing_memory(setting: Setting) -> int:
    """Bytes of keys and values on a rank, of all its layers: two [B, H, T, E] each. 0 without `train.on_policy`."""
    config, arch = setting.config, setting.student
    if config.train.on_policy is None:
        return 0
    rows, columns = config.train.micro_batch * setting.micro_batches, config.data.sequence_length + 1
    heads = max(1, arch.num_kv_heads // setting.student_tp.size)
    return 2 * arch.num_layers * rows * columns * heads * arch.head_dim * setting.student_shape.product
