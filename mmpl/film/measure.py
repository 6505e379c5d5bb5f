"""What the tasks of a film take on the devices at hand, measured before they are dealt.

Every group's clean pass is one forward a branch, and so is each of its denoising steps: a few
passes over empty latents tell all. They are measured once, at the start, and shared: from then on
all ranks deal the same work in the same way without asking each other again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from mmpl.film.denoise import Context, commit, reset
from mmpl.film.exchange import gathered
from mmpl.film.settings import Film
from mmpl.film.studio import Studio
from mmpl.film.team import Team
from mmpl.layout.layout import Group
from mmpl.layout.mesh import Mesh
from mmpl.layout.schedule import Costs
from mmpl.wan import vae
from mmpl.wan.dit import block

_SPEED_GRAIN = 10  # speeds count in tenths
_EVEN = 1.25  # teams that differ by less than this factor count as equal: that much is noise
_DECODED = 2  # latent frames that are decoded to see what pixels cost


def measured_costs(
    studio: Studio,
    team: Team,
    mesh: Mesh,
    group: dist.ProcessGroup,
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> Costs:
    """What tasks take in seconds on the first team, and how fast the others are beside it.

    Every rank of `group` must call it; all get the same. Raises RankError when a rank is gone.
    """
    own = _seconds(studio, on_wait)
    found = gathered(torch.tensor(own, dtype=torch.float64), group, on_wait=on_wait)
    teams = [found[team.leader_of(index)].tolist() for index in range(mesh.teams)]
    return costs_of(studio.film, teams)


def costs_of(film: Film, teams: list[list[float]]) -> Costs:
    """The costs of a film's tasks from the seconds that teams took: for a pass of each group in
    layout order, then for a pixel frame of the VAE. The first group tells how fast a team is; of
    what teams took for the rest the least counts, for whatever disturbs makes times longer."""
    speeds = [_speed(teams[0][0] / own[0]) for own in teams]
    *passes, pixel_frame = (
        min(seconds * speed for seconds, speed in zip(column, speeds, strict=True))
        for column in zip(*teams, strict=True)
    )
    names, steps_of = [group.name for group in film.layout.groups], film.steps_of
    decoded, encoded = film.chain.handover_frames[1], film.chain.overlap
    return Costs(
        make={name: steps_of[name] * seconds for name, seconds in zip(names, passes, strict=True)},
        refresh=dict(zip(names, passes, strict=True)),
        hand_over=(decoded + encoded) * pixel_frame,
        decode=film.chain.segment_frames * pixel_frame,
        speeds=tuple(speeds),
    )


def _speed(ratio: float) -> float:
    """The speed of a team that takes `1 / ratio` times as long as the first."""
    if 1 / _EVEN < ratio < _EVEN:
        return 1.0
    return max(1, round(ratio * _SPEED_GRAIN)) / _SPEED_GRAIN


@torch.no_grad()
def _seconds(studio: Studio, on_wait: Callable[[], None]) -> list[float]:
    """For `costs_of`, on this rank."""
    seconds = _passes_s(studio, on_wait)  # its cache is gone before the VAE runs
    channels, rows, columns = studio.latent_shape
    z_BCTHW = torch.zeros(1, channels, _DECODED, rows, columns, device=studio.device)
    start_s = _now_s(studio.device)
    videos = vae.decode_each(studio.vae_to_show(), studio.vae_config, z_BCTHW.split(1, 2))
    frames = sum(video_BCFHW.shape[2] for video_BCFHW in videos)
    return [*seconds, (_now_s(studio.device) - start_s) / frames]


def _passes_s(studio: Studio, on_wait: Callable[[], None]) -> list[float]:
    """Of a pass of each group; 0 of groups that the film does without."""
    first, *others = studio.film.layout.groups
    made = studio.film.work.made
    compiled = studio.network.engine.block_fn is not block
    context = _pass_s(studio, studio.new_context(), first)[0]  # loads and chooses kernels
    context, seconds = reset(context), []
    for group in (first, *others):
        on_wait()
        taken_s = 0.0
        if group is first or group.name in made:
            if compiled and group is not first:  # at its first pass
                _pass_s(studio, context, group)
            context, taken_s = _pass_s(studio, context, group)
        seconds.append(taken_s)
    again_s = _pass_s(studio, reset(context), first)[1]
    return [min(seconds[0], again_s), *seconds[1:]]


def _pass_s(studio: Studio, context: Context, group: Group) -> tuple[Context, float]:
    """The clean pass of a group over empty latents, and its seconds."""
    channels, rows, columns = studio.latent_shape
    z_BCTHW = torch.zeros(1, channels, len(group.frames), rows, columns, device=studio.device)
    start_s = _now_s(studio.device)
    context = commit(studio.network, context, group, z_BCTHW)
    return context, _now_s(studio.device) - start_s


def _now_s(device: torch.device) -> float:
    """The time, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
