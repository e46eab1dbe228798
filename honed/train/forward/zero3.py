"""Models for DeepSpeed's ZeRO-3: loaded whole and tried, then shared out among the processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from honed.train.options.config import SFTConfig
from honed.train.options.deepspeed import zero_stage


@contextmanager
def loaded_whole(args: SFTConfig) -> Iterator[torch.device]:
    """A block in which transformers loads whole models; yields the device to load them on.

    While ZeRO-3's configuration exists, transformers shares weights out as it loads them, and what is shared out cannot
    be tried (`seams.find_seams`). A whole model may be too large for a GPU: it is kept in the CPU's memory until
    `share_out`.
    """
    if zero_stage(args) != 3:
        yield args.device
        return
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield torch.device("cpu")
    finally:
        args.deepspeed_plugin.set_deepspeed_weakref()


def share_out(model: nn.Module, args: SFTConfig) -> None:
    """With ZeRO-3, leaves each process its piece of every weight; to be called by all processes.

    They get the format that DeepSpeed computes in and go to the GPU one by one: its engine would move a model that is
    not shared out there as a whole.
    """
    if zero_stage(args) != 3 or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return  # or an earlier `train` has done so
    import deepspeed  # type: ignore[import-not-found]
    from transformers.integrations import deepspeed_config

    dtype = args.deepspeed_plugin.hf_ds_config.dtype()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    deepspeed.init_distributed(dist_backend=dist.get_backend())  # on CPUs accelerate leaves that to the engine
    deepspeed.zero.Init(module=model, config_dict_or_path=deepspeed_config())
