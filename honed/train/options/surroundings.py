"""Facts about the launcher, the installed packages and the device, for the rules."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from honed.train.options.config import SFTConfig

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")  # modes of torch.compile; a graph has one shape


def row_parts(args: SFTConfig) -> int:
    """The number of processes that share a row, set by the arguments or by `accelerate launch`."""
    given = args.parallelism_config
    if given is not None:
        return max(given.cp_size, given.sp_size)
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() != "true":
        return 1
    return max(int(os.environ.get(f"PARALLELISM_CONFIG_{kind}_SIZE", "1")) for kind in ("CP", "SP"))


def hinders_sequences(args: SFTConfig) -> bool:
    """Whether an option is set that was not shown to give the same training on slices of rows."""
    changes = args.torch_compile or bool(args.fp8) or bool(args.neftune_noise_alpha)
    ranks = uses_deepspeed(args) or only_first_rank_loads(args) or not args.average_tokens_across_devices
    return changes or ranks or args.skips_preparation


def uses_fsdp(args: SFTConfig) -> bool:
    """Whether the arguments or `accelerate launch` select FSDP."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def uses_deepspeed(args: SFTConfig) -> bool:
    """Whether the arguments or `accelerate launch` select DeepSpeed."""
    return bool(args.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def is_sharded(args: SFTConfig) -> bool:
    """Whether FSDP or DeepSpeed may shard the model."""
    return uses_fsdp(args) or uses_deepspeed(args)


def only_first_rank_loads(args: SFTConfig) -> bool:
    """Whether the arguments or `accelerate launch` enable FSDP's cpu_ram_efficient_loading."""
    config = args.fsdp_config if isinstance(args.fsdp_config, dict) else {}
    asked = config.get("cpu_ram_efficient_loading", os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", ""))
    return uses_fsdp(args) and str(asked).lower() == "true"


def gathers_states(args: SFTConfig) -> bool:
    """Whether FSDP's checkpoints hold the optimizer's unsharded states (FULL_STATE_DICT, transformers' default)."""
    config = args.fsdp_config if isinstance(args.fsdp_config, dict) else {}
    default = "FULL_STATE_DICT" if args.fsdp else os.environ.get("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    return uses_fsdp(args) and config.get("state_dict_type", default) == "FULL_STATE_DICT"


def is_missing(package: str) -> bool:
    """Whether a package is not installed."""
    return importlib.util.find_spec(package) is None


def has_compiler(device: str) -> bool:
    """Whether torch's inductor finds a compiler for this device."""
    if device == "cpu":
        return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
    return device != "cuda" or not is_missing("triton")


def multiplies_float8(args: SFTConfig) -> bool:
    """Whether the device is an NVIDIA GPU with compute capability 8.9 or higher."""
    return args.device.type == "cuda" and torch.cuda.get_device_capability(args.device) >= (8, 9)


def lacks_bfloat16(args: SFTConfig) -> bool:
    """True on NVIDIA GPUs before Ampere, where torch emulates bfloat16."""
    return args.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)


def runs_triton(args: SFTConfig) -> bool:
    """Whether Triton compiles for the device."""
    return args.device.type in ("cuda", "xpu")


def cpu_likes_bf16() -> bool:
    """Whether a small matrix product is faster in bfloat16 than in float32 on this CPU."""
    from honed.model.device import matmul_seconds

    return matmul_seconds(torch.bfloat16) < matmul_seconds(torch.float32)
