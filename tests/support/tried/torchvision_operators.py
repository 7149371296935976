"""Declares torchvision's compiled operators where torch is a build for CPUs and torchvision is not.

The usual wheel of torchvision then cannot load its library, and its import fails on the missing
names. Tried models call none of these operators.
"""

import importlib.util

import torch

_OPERATORS = (
    "nms", "qnms", "roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward",
    "ps_roi_align", "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward",
    "qroi_align", "deform_conv2d", "_deform_conv2d_backward",
)  # fmt: skip

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def _can_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True
    try:
        torch.ops.load_library(f"{spec.submodule_search_locations[0]}/_C.so")
    except OSError:
        return False
    return True


if not _can_load():
    for _name in _OPERATORS:
        LIBRARY.define(f"{_name}(Tensor x) -> Tensor")
