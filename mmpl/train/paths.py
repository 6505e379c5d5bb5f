"""The teacher's ways from noise to a clip, and a first lesson of few steps: to jump to their end.

Plain regression on the teacher's own trajectories brings a student near before its rollouts are
matched, which a small network needs to be stable. Films are made segment by segment, group by
group, as sampling does, and kept at the student's noise levels.
Source: the ODE initialisation of CausVid and Self-Forcing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmpl.errors import ArgumentError
from mmpl.layout.layout import Group, Layout
from mmpl.layout.presets import by_name
from mmpl.layout.timeline import chain_of
from mmpl.media import durable
from mmpl.train.loop import Loss, LossOf
from mmpl.train.rollout import Latents, Memory, Reader, open_memory, read, roll_out, stack, velocity
from mmpl.train.self_mmpl import Batch, Draw, Teacher
from mmpl.train.state import Weights
from mmpl.train.teacher_forcing import lesson as lesson_of
from mmpl.train.teacher_forcing import taught_flow
from mmpl.wan import vae
from mmpl.wan.config import DiTConfig
from mmpl.wan.dit import DEFAULT_ENGINE, Engine, dit_from_flat, encode_context
from mmpl.wan.flow import TRAIN_TIMESTEPS, SolverState, guided, schedule, step, x0_from_flow

SOLVER = "dpm++"  # starts at pure noise and hits the levels of few steps exactly
_CONTEXT_NOISE = 0.1


@dataclass(frozen=True, slots=True)
class Teaching:
    """Of `films` batches of `batch` clips each, every one `segments` long. `layouts`: names and
    odds. `steps` few steps at `shift` are what the student will take, `fine` times as many the
    teacher takes, under `guidance`."""

    layouts: tuple[tuple[str, float], ...]
    films: int
    batch: int
    segments: int = 2
    steps: int = 4
    fine: int = 3
    shift: float = 5.0
    guidance: float = 5.0
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """One segment of a batch: x_KBCTHW float16 at every level from pure noise down, the last of
    them the clip. `given`: frames that are the clip's at every level."""

    x_KBCTHW: Tensor
    layout: Layout
    given: tuple[int, ...]
    texts: list[Tensor]

    @property
    def groups(self) -> list[Group]:
        """Those that were made."""
        return [group for group in self.layout.groups if not {*self.given} >= {*group.frames}]


def teach(
    teacher: Teacher,
    draw: Draw,
    teaching: Teaching,
    folder: Path,
    *,
    made_by: Mapping[str, str],
    engine: Engine = DEFAULT_ENGINE,
) -> Iterator[int]:
    """Writes the paths of all films into `folder`, one file each; yields how many are there.

    Raises ArgumentError when the folder holds those of another teacher or teaching.
    """
    durable.make_folder(folder)
    note = {**made_by, "teaching": repr(replace(teaching, films=1))}  # more may be added
    for film in range(teaching.films):
        path = folder / f"film-{film:05d}.safetensors"
        if not path.exists():
            tensors, names = _film(teacher, draw, teaching, film, engine)
            with durable.replacing(path) as temporary:
                save_file(tensors, temporary, metadata={**note, "segments": json.dumps(names)})
        else:
            _check_maker(path, note)
        yield film + 1


def read_paths(folder: Path) -> list[Paths]:
    """All segments in a folder, film after film. Raises ArgumentError when there are none."""
    paths: list[Paths] = []
    for path in sorted(folder.glob("film-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = json.loads(file.metadata()["segments"])
            texts = list(file.get_tensor("texts_BJD").unbind())
            kept = [text[:length] for text, length in zip(texts, names["lengths"], strict=True)]
            layout = by_name(names["layout"])
            for segment, given in enumerate(names["given"]):
                x_KBCTHW = file.get_tensor(f"x_KBCTHW.{segment}")
                paths.append(Paths(x_KBCTHW, layout, tuple(given), kept))
    if not paths:
        raise ArgumentError("no trajectories", where=str(folder), todo="make them first")
    return paths


def jump_loss(
    config: DiTConfig,
    paths: Sequence[Paths],
    teaching: Teaching,
    *,
    batch: int,
    engine: Engine = DEFAULT_ENGINE,
) -> LossOf:
    """The loss for `mmpl.train.loop.train`: from a point of a path a student of this config
    predicts its end.

    Over a clean context of the teacher's making; every clip at a level of its own.
    """
    grid = schedule("few_step", teaching.steps, teaching.shift)

    def loss_of(weights: Weights) -> Loss:
        student = dit_from_flat(weights, config)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            rng = np.random.default_rng([teaching.seed, step])
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            drawn = paths[int(rng.integers(len(paths)))]
            clips = rng.permutation(drawn.x_KBCTHW.shape[1])[:batch].tolist()
            levels = torch.from_numpy(rng.integers(teaching.steps, size=len(clips)))
            device = student.head.head.weight.device
            x_KBCTHW = drawn.x_KBCTHW[:, clips].to(device, torch.float32)
            lesson = lesson_of(drawn.layout, drawn.groups)
            end_BCTHW, noisy = x_KBCTHW[-1], list(lesson.noisy)
            x_BCTHW = x_KBCTHW[levels, range(len(clips))][:, :, noisy]
            clean_BCTHW = end_BCTHW[:, :, list(lesson.clean)]
            jitter = torch.randn(clean_BCTHW.shape, generator=generator).to(device)
            sigma_B = torch.tensor(grid.sigmas)[levels].to(device, torch.float32)
            v_BCTHW = taught_flow(
                student,
                config,
                clean_BCTHW + _CONTEXT_NOISE * float(rng.random()) * jitter,
                x_BCTHW,
                (sigma_B * TRAIN_TIMESTEPS)[:, None].expand(-1, len(noisy)),
                encode_context(student, config, [drawn.texts[i] for i in clips]),
                lesson=lesson,
                engine=engine,
            )
            x0_BCTHW = x0_from_flow(v_BCTHW, x_BCTHW, sigma_B.view(-1, 1, 1, 1, 1))
            return F.mse_loss(x0_BCTHW, end_BCTHW[:, :, noisy]), {}

        return loss

    return loss_of


@torch.no_grad()
def _film(
    teacher: Teacher, draw: Draw, teaching: Teaching, film: int, engine: Engine
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of one batch of films, and what else must be known of them."""
    rng = np.random.default_rng([teaching.seed, film])
    odds = np.array([share for _, share in teaching.layouts])
    layout = by_name(teaching.layouts[rng.choice(len(odds), p=odds / odds.sum())][0])
    batch = draw(rng, teaching.batch, layout)
    reader = read(teacher.params, teacher.config, _all_texts(teacher, teaching, batch), engine)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    chain = chain_of(layout, seeding="terminal", temporal_stride=teacher.vae_config.temporal_stride)
    given, tensors, frames_given = batch.given, {}, []
    for segment in range(teaching.segments):
        x_KBCTHW = _segment(teacher, teaching, reader, layout, given, generator)
        tensors[f"x_KBCTHW.{segment}"] = x_KBCTHW.half()
        frames_given.append(sorted(given))
        z_BCTHW = x_KBCTHW[-1][:, :, list(chain.handover)]
        seeds_BCTHW = vae.encode_again(
            teacher.vae, teacher.vae_config, z_BCTHW, chain.handover_frames
        )
        given = dict(enumerate(seeds_BCTHW.unbind(2)))
    lengths = [len(text) for text in batch.texts]
    tensors["texts_BJD"] = torch.nn.utils.rnn.pad_sequence(batch.texts, batch_first=True)
    return tensors, {"layout": layout.name, "given": frames_given, "lengths": lengths}


def _segment(
    teacher: Teacher,
    teaching: Teaching,
    reader: Reader,
    layout: Layout,
    given: Latents,
    generator: torch.Generator,
) -> Tensor:
    """x_KBCTHW of a segment."""
    grid = schedule(SOLVER, teaching.steps * teaching.fine, teaching.shift)
    branches = 1 if teaching.guidance == 1.0 else 2
    channels, rows, columns = teacher.latent_shape
    points: list[dict[int, Tensor]] = [dict(given) for _ in range(teaching.steps)]

    def make(memory: Memory, group: Group) -> Tensor:
        shape = (teaching.batch, channels, len(group.frames), rows, columns)
        x_BCTHW = torch.randn(shape, generator=generator).to(reader.context.k_IBJNK.device)
        state = SolverState()
        for index, timestep in enumerate(grid.timesteps):
            if index % teaching.fine == 0:
                parts = zip(group.frames, x_BCTHW.unbind(2), strict=True)
                points[index // teaching.fine].update(parts)
            both_BCTHW = velocity(memory, group, _repeated(x_BCTHW, branches), timestep)
            v_BCTHW, *others = both_BCTHW.chunk(branches)
            for other_BCTHW in others:
                v_BCTHW = guided(v_BCTHW, other_BCTHW, teaching.guidance)
            x_BCTHW, state = step(SOLVER, grid, index, v_BCTHW, x_BCTHW, state)
        return _repeated(x_BCTHW, branches)

    memory = open_memory(reader, layout, (rows, columns))
    start = {frame: z_BCHW.repeat(branches, 1, 1, 1) for frame, z_BCHW in given.items()}
    latents = roll_out(memory, layout, layout.groups, start, make)
    end_BCTHW = stack(latents, range(layout.frames))[: teaching.batch]
    return torch.stack([*(stack(p, range(layout.frames)) for p in points), end_BCTHW])


def _all_texts(teacher: Teacher, teaching: Teaching, batch: Batch) -> list[Tensor]:
    """Both branches of guidance as one batch."""
    if teaching.guidance == 1.0:
        return batch.texts
    return [*batch.texts, *[teacher.negative] * len(batch.texts)]


def _repeated(x_BCTHW: Tensor, times: int) -> Tensor:
    return x_BCTHW.repeat(times, 1, 1, 1, 1)


def _check_maker(path: Path, note: Mapping[str, str]) -> None:
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
    if any(found.get(name) != value for name, value in note.items()):
        raise ArgumentError(
            "these trajectories were made by another teacher, or otherwise",
            where=str(path),
            todo="use another run folder",
        )
