"""AdamW's moments in and out of DeepSpeed's ZeRO optimizer, one whole (tensor-parallel local) tensor a parameter.

DeepSpeed links a parameter to its optimizer state only after the first step, and then for its first group alone; so the
state is created here, beforehand, for every group.
"""

from typing import Any

import torch

from megaokd.engine.parameters import TrainableParameter

MOMENTS = ("exp_avg", "exp_avg_sq")


def create_state(zero_optimizer: Any) -> None:
    """Give every flat ZeRO partition its (zero) moments and link parameters to them; once, before the first step."""
    for flat in zero_optimizer.single_partition_of_fp32_groups:
        state = zero_optimizer.optimizer.state[flat]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in MOMENTS:
                state[name] = torch.zeros_like(flat)
    zero_optimizer._lazy_init_hp_params_optimizer_state()


def read_moments(item: TrainableParameter) -> dict[str, torch.Tensor]:
    """Both moments, of the local parameter's shape. Collective over the data-parallel group."""
    from deepspeed.utils import safe_get_full_optimizer_state

    return {name: safe_get_full_optimizer_state(item.parameter, name) for name in MOMENTS}


def write_moments(item: TrainableParameter, moments: dict[str, torch.Tensor]) -> None:
    """Set both moments, and the master weight from the parameter."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    for name in MOMENTS:
        safe_set_full_optimizer_state(item.parameter, moments[name], name)
    safe_set_full_fp32_param(item.parameter, item.parameter.detach())


def set_step(zero_optimizer: Any, step: int) -> None:
    """Set AdamW's step count, on which its bias correction depends."""
    for flat in zero_optimizer.single_partition_of_fp32_groups:
        zero_optimizer.optimizer.state[flat]["step"].fill_(float(step))
