"""The order in which a run goes through documents: short ones first, longer ones when mastered.

stages_of(system, ("passkey",), lm=True)   # the stages that this system can go through
"""

from __future__ import annotations

from dataclasses import replace

from step import Stage
from systems import System
from tasks import Task

# Without recall there is nothing to master: one stage of words alone.
WORDS_ALONE: tuple[Stage, ...] = (Stage(gap=0, length=2048, rows=32, lm=1.0),)
# One fact is soon found; the time goes to states that have read a million tokens and more.
KEY_ALONE: tuple[Stage, ...] = (
    Stage(gap=32, length=96, rows=256, share=0.05),
    Stage(gap=96, length=160, rows=160, share=0.05),
    Stage(gap=480, length=640, rows=96, lm=0.05, share=0.05),
    Stage(gap=2000, length=2048, rows=48, lm=0.1, share=0.1),
    Stage(gap=8192, length=2048, rows=48, segments=4, lifetime=16, lm=0.2, share=0.1),
    Stage(gap=32768, length=2048, rows=48, segments=16, lifetime=128, lm=0.2, share=0.2),
    Stage(gap=32768, length=2048, rows=48, segments=16, lifetime=1024, lm=0.2),
)
STAGES: tuple[Stage, ...] = (
    Stage(gap=32, length=96, rows=256, tasks=1, share=0.05),
    Stage(gap=96, length=160, rows=160, tasks=1, share=0.05),
    Stage(gap=96, length=192, rows=96, facts=2, lm=0.05, share=0.3),
    Stage(gap=96, length=256, rows=96, facts=4, lm=0.05, share=0.15),
    Stage(gap=480, length=640, rows=96, facts=8, lm=0.05, share=0.15),
    Stage(gap=2000, length=2048, rows=48, facts=8, lm=0.1, share=0.15),
    Stage(gap=8192, length=2048, rows=48, segments=4, facts=8, lm=0.2, share=0.1),
    Stage(gap=32768, length=2048, rows=48, segments=16, lifetime=64, facts=8, lm=0.2, share=0.1),
    Stage(gap=32768, length=2048, rows=48, segments=16, lifetime=256, facts=8, lm=0.2),
)
BYTES_A_TOKEN = 4


def stages_of(system: System, asked: tuple[Task, ...], *, lm: bool) -> tuple[Stage, ...]:
    """The stages of a system.

    A model whose cache grows reads its documents in one segment; a document of bytes is four times
    as long, and a batch has as many bytes as others have tokens.

    Args:
        system: what is trained.
        asked: tasks; none where words alone are learnt.
        lm: whether words are learnt beside what is asked.
    """
    stages = STAGES if asked else WORDS_ALONE
    if asked == ("passkey",):
        stages = KEY_ALONE
    if system.model.has_cache:
        stages = tuple(stage for stage in stages if stage.segments == 1 and not stage.lifetime)
    if system.tokens == "bytes":
        stages = tuple(
            replace(
                stage,
                gap=BYTES_A_TOKEN * stage.gap,
                length=BYTES_A_TOKEN * stage.length,
                rows=max(4, stage.rows // BYTES_A_TOKEN),
            )
            for stage in stages
        )
    if asked and not lm:
        stages = tuple(replace(stage, lm=0.0) for stage in stages)
    return (*stages[:-1], replace(stages[-1], share=1.0))
