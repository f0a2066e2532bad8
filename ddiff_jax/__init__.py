"""Imaging inverse problems with diffusion priors in JAX.

Docstrings name files and symbols of the released codes of DDiff (SoniaMinseoKim/ddiff-cvpr), DPS
(DPS2022/diffusion-posterior-sampling), DAPS (zhangbingliang2019/DAPS), DiffPIR (yuanzhi-zhu/DiffPIR), RED-diff
(NVlabs/RED-diff), BKSE (VinAIResearch/blur-kernel-space-exploring), motionblur (LeviBorodenko/motionblur) and
guided-diffusion (openai/guided-diffusion), all on GitHub.
"""

import lazy_loader

# Nothing is imported before it is used: `ddiff --help` needs no JAX. The names are in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
