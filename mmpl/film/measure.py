"""What the tasks of a film take on the devices at hand, measured before they are dealt.

Every group's clean pass is one forward a branch, and so is each of its denoising steps: a few
passes over empty latents tell all. They are measured once, at the start, and shared: from then on
all ranks deal the same work in the same way without asking each other again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from mmpl.film.denoise import commit, reset
from mmpl.film.exchange import gathered
from mmpl.film.runtime import Studio
from mmpl.film.settings import Film
from mmpl.film.team import Team
from mmpl.layout.layout import Group
from mmpl.layout.mesh import Mesh
from mmpl.layout.schedule import Costs
from mmpl.wan import vae

_SPEED_GRAIN = 10  # speeds count in tenths: smaller differences are noise
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

    Every rank of `group` must call it; all get the same. The context is emptied. Raises RankError
    when a rank is gone.
    """
    _seconds(studio, studio.film.layout.groups[:1], 1, on_wait)  # first passes load kernels
    own = _seconds(studio, studio.film.layout.groups, _DECODED, on_wait)
    found = gathered(torch.tensor(own, dtype=torch.float64), group, on_wait=on_wait)
    teams = [found[team.leader_of(index)].tolist() for index in range(mesh.teams)]
    return costs_of(studio.film, teams)


def costs_of(film: Film, teams: list[list[float]]) -> Costs:
    """The costs of a film's tasks from the seconds that teams took: for a pass of each group in
    layout order, then for a pixel frame of the VAE."""
    *passes, pixel_frame = teams[0]
    names = [group.name for group in film.layout.groups]
    decoded, encoded = film.chain.handover_frames[1], film.chain.overlap
    totals = [sum(own[:-1]) for own in teams]
    speeds = [round(totals[0] / total * _SPEED_GRAIN) / _SPEED_GRAIN for total in totals]
    return Costs(
        make={name: film.steps * seconds for name, seconds in zip(names, passes, strict=True)},
        refresh=dict(zip(names, passes, strict=True)),
        hand_over=(decoded + encoded) * pixel_frame,
        decode=film.chain.segment_frames * pixel_frame,
        speeds=tuple(max(speed, 1 / _SPEED_GRAIN) for speed in speeds),
    )


@torch.no_grad()
def _seconds(
    studio: Studio, groups: Sequence[Group], decoded: int, on_wait: Callable[[], None]
) -> list[float]:
    """Of a pass of each group and, by `decoded` latent frames, of a pixel frame, on this rank."""
    context, seconds = reset(studio.context), []
    channels, rows, columns = studio.latent_shape
    for group in groups:
        on_wait()
        z_BCTHW = torch.zeros(1, channels, len(group.frames), rows, columns, device=studio.device)
        start_s = _now_s(studio.device)
        context = commit(studio.network, context, group, z_BCTHW)
        seconds.append(_now_s(studio.device) - start_s)
    z_BCTHW = torch.zeros(1, channels, decoded, rows, columns, device=studio.device)
    start_s = _now_s(studio.device)
    video_BCFHW, _ = vae.decode(studio.vae, studio.vae_config, z_BCTHW)
    return [*seconds, (_now_s(studio.device) - start_s) / video_BCFHW.shape[2]]


def _now_s(device: torch.device) -> float:
    """The time, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
