"""Sizes of the networks: frozen, hashable, validated. The only place with geometry literals."""

from __future__ import annotations

from dataclasses import dataclass

from mmpl.errors import ArgumentError

# Per-channel statistics of Wan2.1's latents.
WAN_LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 2**20:
            raise ArgumentError(
                f"{type(config).__name__}.{name} is out of range",
                got=repr(value),
                wanted="a whole number from 1 to 2^20",
            )


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """The diffusion transformer. Defaults are Wan2.1 T2V-1.3B."""

    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    in_dim: int = 16
    out_dim: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _positive(
            self, "dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "text_dim", "text_len",
            "in_dim", "out_dim",
        )  # fmt: skip
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ArgumentError(
                "DiTConfig.dim must split into heads of even width",
                got=f"dim {self.dim}, num_heads {self.num_heads}",
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def rope_dims(self) -> tuple[int, int, int]:
        """Real dims of a head given to (time, row, column); time gets what is left over."""
        spatial = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * spatial, spatial, spatial

    def frame_tokens(self, latent_height: int, latent_width: int) -> int:
        """Tokens of one latent frame."""
        return (latent_height // self.patch_size[1]) * (latent_width // self.patch_size[2])


WAN_14B = DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)


@dataclass(frozen=True, slots=True)
class VAEConfig:
    """The causal 3-D VAE. Defaults are Wan2.1's.

    `patch_size` folds that many pixels a side into channels before the first convolution (1 in
    Wan2.1, 2 in Wan2.2), with one level fewer for the same spatial stride.
    """

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    patch_size: int = 1
    latent_mean: tuple[float, ...] = WAN_LATENT_MEAN
    latent_std: tuple[float, ...] = WAN_LATENT_STD

    def __post_init__(self) -> None:
        _positive(self, "dim", "z_dim", "num_res_blocks", "patch_size")
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ArgumentError(
                "VAEConfig.temporal_downsample needs one entry between two levels",
                got=self.temporal_downsample,
                wanted=f"{len(self.dim_mult) - 1} entries",
            )
        if not len(self.latent_mean) == len(self.latent_std) == self.z_dim:
            raise ArgumentError(
                "VAEConfig.latent_mean and latent_std need one entry per latent channel",
                got=f"{len(self.latent_mean)} and {len(self.latent_std)}",
                wanted=self.z_dim,
            )

    @property
    def spatial_stride(self) -> int:
        """Pixels a side of one latent cell."""
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_stride(self) -> int:
        """Pixel frames of every latent frame but the first, which holds one."""
        return 2 ** sum(self.temporal_downsample)

    def latent_frames(self, pixel_frames: int) -> int:
        """Latent frames of a clip; pixel frames that fill no latent frame are dropped."""
        return 1 + (pixel_frames - 1) // self.temporal_stride

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames that a decode of `latent_frames` gives."""
        return 1 + (latent_frames - 1) * self.temporal_stride


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The umT5 encoder. Defaults are umT5-xxl."""

    vocab_size: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _positive(
            self, "vocab_size", "dim", "dim_attn", "dim_ffn", "num_heads", "num_layers",
            "num_buckets", "max_distance",
        )  # fmt: skip
        if self.dim_attn % self.num_heads:
            raise ArgumentError(
                "TextConfig.dim_attn must split into heads",
                got=f"dim_attn {self.dim_attn}, num_heads {self.num_heads}",
            )
