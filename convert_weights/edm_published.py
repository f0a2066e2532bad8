"""What the shapes of EDM's networks cannot tell, for those that were published: recognised by their shapes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network was trained, as far as its weights do not show.

    Args:
        files: names of the files, for messages.
        precond: preconditioning.
        clip: whether its images are pictures, with a range of [-1, 1].
        scale: what its images are, in words; empty for pictures.
    """

    files: str
    precond: str = "edm"
    clip: bool = True
    scale: str = ""


FIELDS = (
    "images are no pictures and have no range: physical values are 2 std x + mean, with std 500 and mean 3000 for "
    "full waveform inversion, 0.25 and 0.5 for inverse scattering, 5 and 0 for Navier-Stokes; not clipped"
)
MRI = (
    "images are the real and the imaginary part of an MRI, divided by the 0.99 quantile of the magnitude of the "
    "minimum variance unbiased estimate, and have no range; not clipped"
)
# By `_signature`. Source: the class definitions and flags in the repositories of the files' authors.
PUBLISHED = {
    "1c5f38fd273af62a": Settings("edm-cifar10-32x32-uncond-vp"),
    "740b096010232034": Settings("edm-cifar10-32x32-cond-vp"),
    "9f4e045d77df6be9": Settings("edm-cifar10-32x32-uncond-ve"),
    "35f55bbe1d6e3227": Settings("edm-cifar10-32x32-cond-ve"),
    "327e9abfb3a00b61": Settings("edm-ffhq-64x64-uncond-vp and edm-afhqv2-64x64-uncond-vp"),
    "9f1188b393e2e0f6": Settings("edm-ffhq-64x64-uncond-ve and edm-afhqv2-64x64-uncond-ve"),
    "a59bb78fad0da4fa": Settings("edm-imagenet-64x64-cond-adm"),
    "1ab9ac48d74d2301": Settings("baseline-cifar10-32x32-uncond-vp", "vp"),
    "576401124176d6a4": Settings("baseline-cifar10-32x32-uncond-ve", "ve"),
    "4a3245aaa148ee6a": Settings("baseline-imagenet-64x64-cond-adm", "iddpm"),
    "08504808916f0926": Settings("InverseBench's blackhole", "vp", scale="images are 2 x / max(x) - 1"),
    "62fca52a7b2a911e": Settings("InverseBench's inv-scatter, fwi and ns", clip=False, scale=FIELDS),
    "17257db78b502b85": Settings("InverseBench's mri-brain and mri-knee", clip=False, scale=MRI),
}
