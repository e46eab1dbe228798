"""Models for DeepSpeed's ZeRO-3: loaded whole and tested, then sharded over the processes."""

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

    While ZeRO-3's configuration is set, transformers shards weights as it loads them, and a sharded model cannot be
    tested (`seams.find_seams`). A whole model may be too large for a GPU: it is in host memory until `shard_weights`.
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


def shard_weights(model: nn.Module, args: SFTConfig) -> None:
    """With ZeRO-3, shards every weight over the processes, all of which must call it.

    Weights are cast to DeepSpeed's compute dtype and moved to the GPU one by one, because DeepSpeed's engine would move
    an unsharded model as a whole.
    """
    if zero_stage(args) != 3 or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return  # an earlier `train` may have done so
    import deepspeed  # type: ignore[import-not-found]
    from transformers.integrations import deepspeed_config

    dtype = args.deepspeed_plugin.hf_ds_config.dtype()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    deepspeed.init_distributed(dist_backend=dist.get_backend())  # on CPUs accelerate leaves this to the engine
    deepspeed.zero.Init(module=model, config_dict_or_path=deepspeed_config())
